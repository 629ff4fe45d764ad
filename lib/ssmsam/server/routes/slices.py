"""What is known of an image's slices, and how to change that without sending a mask."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.utils.others.generic import remove_file

from ssmsam.annotation.annotations import Annotations
from ssmsam.annotation.partial import write_partial
from ssmsam.annotation.service import summarise
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.server.clients.rest import LABELS_HEADER, in_header
from ssmsam.server.routes.common import (
    Admin,
    Annotator,
    AnyUser,
    JsonText,
    KnownImage,
    note_opened,
    reader,
    the_app,
)
from ssmsam.service.mask_files import MaskFormat, write_mask

router = APIRouter(prefix="/datastore/annotations", tags=["Datastore"])


@router.get("", summary="Which slices of an image are annotated")
@router.get("/", include_in_schema=False)
def known_slices(user: AnyUser, image: KnownImage) -> dict[str, Any]:
    """``partial`` as submissions say it, whether the volume is ``finished``, and every revision's summary."""
    return _described(the_app().datastore().annotations(image))


@router.put("", summary="Withdraw, accept, finish or reopen slices and labels")
@router.put("/", include_in_schema=False)
def change_slices(
    user: Annotator, request: Request, image: KnownImage, partial: JsonText, client_id: JsonText = ""
) -> dict[str, Any]:
    """``partial`` is what ``params.partial`` is in a submission. Slices listed as ``annotated`` are right as the
    client was last sent them; ``withdraw`` and ``reopen`` take back what was said.
    """
    return the_app().datastore().change(image, partial, client=reader(client_id, request)).answer()


@router.delete("", summary="Forget all that is known of an image's slices")
@router.delete("/", include_in_schema=False)
def forget_slices(user: Admin, image: KnownImage) -> dict[str, Any]:
    the_app().datastore().forget(image)
    return {}


@router.post("/opened", summary="Say that an image was opened")
def opened(user: AnyUser, request: Request, image: KnownImage, client_id: str = "") -> dict[str, Any]:
    """The client's screen shows nothing of it yet: ``finish_volume`` counts only what is shown from now on."""
    note_opened(image, request, client_id)
    return {}


@router.get("/masks", summary="All masks of an image, to be shown again")
def masks(
    user: AnyUser,
    request: Request,
    image: KnownImage,
    background_tasks: BackgroundTasks,
    client_id: str = "",
    compress: bool = True,
) -> FileResponse:
    """A label map (NRRD): slices that are annotated, else what this client was sent last. Values are those of
    ``models.fewshot.labels`` in ``/info/``; the header ``X-Ssmsam-Labels`` holds them as percent-encoded JSON. It
    counts as shown.
    """
    offered = the_app().rooms[FEWSHOT].offered
    volume, values = the_app().datastore().show_again(image, client=reader(client_id, request), order=offered)
    path = write_mask(volume.array, volume, MaskFormat(compress=compress))
    background_tasks.add_task(remove_file, path)
    answer = FileResponse(path, media_type="application/octet-stream", filename="masks.nrrd")
    answer.headers[LABELS_HEADER] = in_header(values)
    return answer


def _described(known: Annotations) -> dict[str, Any]:
    revisions = [
        {
            "revision": revision.number,
            "client_id": revision.update.client,
            "when": revision.update.when,
            "counted": summarise(revision.update).splitlines(),
        }
        for revision in known.revisions
    ]
    return {"partial": write_partial(known), "finished": known.finished, "revisions": revisions}
