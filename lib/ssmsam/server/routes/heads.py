"""What was learned: which heads there are, going back to an earlier one, and carrying them to other servers.

``method`` says whose heads are meant, those of ``fewshot`` unless told.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, UnknownCheckpoint
from ssmsam.fewshot.task_checkpoint import FEWSHOT, LARGEST, UnusableCheckpoint
from ssmsam.server.errors import InvalidRequest, NotKnown
from ssmsam.server.fewshot_room import ADAPT, SEGMENT
from ssmsam.server.routes.common import Admin, Annotator, AnyUser, Upload, is_mine, reader, the_app, watched
from ssmsam.service.jobs import UnknownJob

router = APIRouter(prefix="/heads", tags=["Heads"])


@router.get("", summary="All heads, the oldest first")
@router.get("/", include_in_schema=False)
def heads(user: AnyUser, method: str = FEWSHOT) -> dict[str, Any]:
    shelf = _shelf(method)
    return {**vars(shelf.state), "heads": {name: _as_clients_count(card) for name, card in shelf.cards().items()}}


@router.get("/{name}/file", summary="Export a head")
async def export(
    user: AnyUser, request: Request, name: str, method: str = FEWSHOT, client_id: str = ""
) -> FileResponse:
    """A task checkpoint: a few MB without any image, mask or id. It sums up what other volumes need, which may take
    some seconds the first time."""

    def work() -> Path:
        _known(name, method)
        try:
            return the_app().require_room(method).whole(name, owner=reader(client_id, request))
        except UnusableCheckpoint as error:
            raise InvalidRequest(str(error)) from error

    return FileResponse(await watched(request, work), filename=f"{name}.safetensors")


@router.put("/{name}", summary="Import a head; it does not answer until it is activated")
def import_head(user: Admin, name: str, file: Upload, method: str = FEWSHOT) -> dict[str, Any]:
    data = file.file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InvalidRequest(
            f"a task checkpoint has at most {LARGEST >> 20} MB: is this an exported one, of this version?"
        )
    try:
        return {"head": the_app().require_room(method).take(data, name)}
    except (UnusableCheckpoint, ValueError) as error:
        raise InvalidRequest(str(error)) from error


@router.post("/{name}/activate", summary="Let a head answer; with pin=true whatever is annotated later")
def activate(user: Annotator, name: str, pin: bool = False, method: str = FEWSHOT) -> dict[str, Any]:
    return vars(_known(name, method).activate(name, pin=pin))


@router.post("/unpin", summary="Let newer heads take over again")
def unpin(user: Annotator, method: str = FEWSHOT) -> dict[str, Any]:
    return vars(_shelf(method).unpin())


@router.delete("/adaptation", summary="Stop the caller's own adaptations and segmentations")
def cancel(user: Annotator, request: Request, method: str = "", client_id: str = "") -> dict[str, Any]:
    """Of one method, or of all. What waits is stopped too; ``DELETE /jobs/{id}`` stops a single one. The caller is the
    account where people log in, else ``client_id``, and without one whoever asked without one at the same address.
    """
    app = the_app()
    methods = [app.require_room(method).method] if method else list(app.rooms)
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


@router.delete("/{name}", summary="Remove a head")
def remove(user: Admin, name: str, method: str = FEWSHOT) -> dict[str, Any]:
    try:
        _known(name, method).remove(name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return {"removed": name}


def _as_clients_count(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """A card whose slices say the axis of a client's [i, j, k], as everything else in REST does."""
    support = {
        label: [{**one, "axis": 2 - one["axis"]} for one in slices] for label, slices in card.get("support", {}).items()
    }
    return {**card, "support": support} if "support" in card else card


def _shelf(method: str) -> CheckpointRegistry:
    return the_app().require_room(method).shelf


def _known(name: str, method: str) -> CheckpointRegistry:
    """The shelf, if it has the head. Raises NotKnown."""
    shelf = _shelf(method)
    try:
        shelf.path(name)
    except UnknownCheckpoint:
        raise NotKnown("head", name, shelf.names()) from None
    return shelf
