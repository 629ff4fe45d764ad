"""What was learned: task checkpoints, and the initialisations that ``ssm_sam`` adapts from.

``method`` says whose task checkpoints are meant, those of ``fewshot`` unless told.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from ssmsam.fewshot.checkpoint_registry import SHIPPED, CheckpointRegistry, Initialisations, UnknownCheckpoint
from ssmsam.fewshot.task_checkpoint import FEWSHOT, LARGEST
from ssmsam.models.registry import SSM_SAM
from ssmsam.server.app import ServerApp
from ssmsam.server.routes.common import Admin, Annotator, AnyUser, App, Upload, is_mine, long, reader
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.fewshot_service import ADAPT, SEGMENT
from ssmsam.service.jobs import UnknownJob

checkpoints = APIRouter(tags=["Task checkpoints"])


@checkpoints.get("", summary="All task checkpoints, the oldest first")
def heads(app: App, user: AnyUser, method: str = FEWSHOT) -> dict[str, Any]:
    registry = _registry(app, method)
    return {**vars(registry.state), "heads": {name: _as_clients_count(card) for name, card in registry.cards().items()}}


@checkpoints.get("/{name}/file", summary="Export a task checkpoint")
@long
def export(
    app: App, user: AnyUser, request: Request, name: str, method: str = FEWSHOT, client_id: str = ""
) -> FileResponse:
    """A task checkpoint: a few MB without any image, mask or id. It sums up what other volumes need, which may take
    some seconds the first time."""
    path = app.require_service(method).whole(name, owner=reader(client_id, request))
    return FileResponse(path, filename=f"{name}.safetensors")


@checkpoints.put("/{name}", summary="Import a task checkpoint; it does not answer until it is activated")
def import_head(app: App, user: Admin, name: str, file: Upload, method: str = FEWSHOT) -> dict[str, Any]:
    data = file.file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InvalidRequest(
            f"a task checkpoint has at most {LARGEST >> 20} MB: is this an exported one, of this version?"
        )
    try:
        return {"head": app.require_service(method).take(data, name)}
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


@checkpoints.post("/{name}/activate", summary="Let a task checkpoint answer; with pin=true whatever is annotated later")
def activate(app: App, user: Annotator, name: str, pin: bool = False, method: str = FEWSHOT) -> dict[str, Any]:
    return vars(_registry(app, method).activate(name, pin=pin))


@checkpoints.post("/unpin", summary="Let newer task checkpoints take over again")
def unpin(app: App, user: Annotator, method: str = FEWSHOT) -> dict[str, Any]:
    return vars(_registry(app, method).unpin())


@checkpoints.delete("/adaptation", summary="Stop the caller's own adaptations and segmentations")
def cancel(app: App, user: Annotator, request: Request, method: str = "", client_id: str = "") -> dict[str, Any]:
    """Of one method, or of all. What waits is stopped too; ``DELETE /jobs/{id}`` stops a single one. The caller is the
    account where people log in, else ``client_id``, and without one whoever asked without one at the same address.
    """
    methods = [app.require_service(method).method] if method else list(app.services)
    mine = [
        job
        for name in methods
        for job in app.jobs.active(model=name)
        if job.kind in (ADAPT, SEGMENT) and is_mine(job, client_id, request, user)
    ]
    for job in mine:
        with suppress(UnknownJob):  # it has just ended
            app.jobs.cancel(job.id)
    return {"cancelled": bool(mine)}


@checkpoints.delete("/{name}", summary="Remove a task checkpoint")
def remove(app: App, user: Admin, name: str, method: str = FEWSHOT) -> dict[str, Any]:
    try:
        _registry(app, method).remove(name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return {"removed": name}


def _as_clients_count(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """A card whose slices say the axis of a client's [i, j, k], as everything else in REST does."""
    support = {
        label: [{**one, "axis": 2 - one["axis"]} for one in slices] for label, slices in card.get("support", {}).items()
    }
    return {**card, "support": support} if "support" in card else card


def _registry(app: ServerApp, method: str) -> CheckpointRegistry:
    return app.require_service(method).registry


initialisations = APIRouter(tags=["Initialisations"])


@initialisations.get("", summary="All initialisations, the oldest first; the shipped one answers to that name")
def starts(app: App, user: AnyUser) -> dict[str, Any]:
    found = _starts(app)
    return {**_names(found), "starts": {SHIPPED: {}, **found.cards()}}


@initialisations.post(
    "/roll_back", summary="Adapt from the initialisation that was used before; again, and it is undone"
)
def roll_back(app: App, user: Annotator) -> dict[str, Any]:
    found = _starts(app)
    found.roll_back()
    return _names(found)


@initialisations.post("/{name}/activate", summary="Adapt from an initialisation from now on")
def start_from(app: App, user: Annotator, name: str) -> dict[str, Any]:
    found = _starts(app)
    try:
        found.activate(name)
    except UnknownCheckpoint:
        raise NotKnown("start", name, [SHIPPED, *found.cards()]) from None
    return _names(found)


def _names(starts: Initialisations) -> dict[str, Any]:
    state = starts.state
    return {"active": state.active or SHIPPED, "previous": state.previous or SHIPPED}


def _starts(app: ServerApp) -> Initialisations:
    found = app.require_service(SSM_SAM).initialisations
    assert found is not None
    return found


router = APIRouter()
for names, routes in ((("/checkpoints", "/heads"), checkpoints), (("/initialisations", "/starts"), initialisations)):
    for number, name in enumerate(names):  # the second one is what clients of earlier versions ask for
        router.include_router(routes, prefix=name, include_in_schema=number == 0)
