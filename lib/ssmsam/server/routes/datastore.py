"""Images, labels and annotated slices. Every id, tag and file is checked before MONAI Label's own function runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import datastore as stock
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import remove_file
from pydantic import BaseModel, Field

from ssmsam.annotation.annotations import SliceKey
from ssmsam.annotation.partial import write_partial
from ssmsam.annotation.service import summarise
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.reading import read_volume
from ssmsam.server.clients.rest import LABELS_HEADER, SUBMISSION, in_header, require_keys
from ssmsam.server.routes.common import (
    Admin,
    Annotator,
    AnyUser,
    App,
    CheckedJson,
    JsonText,
    KnownImage,
    Scratch,
    Upload,
    json_object,
    note_opened,
    reader,
    received,
    require_label,
)
from ssmsam.service.annotated_studies import FINAL, PARTIAL
from ssmsam.service.errors import NotKnown
from ssmsam.service.identifiers import VOLUME_SUFFIXES, safe_name, volume_suffix
from ssmsam.service.mask_files import MaskFormat, slice_from_json, write_mask
from ssmsam.volume.errors import named
from ssmsam.volume.writing import write_volume

router = APIRouter(prefix="/datastore", tags=["Datastore"])


@router.get("/", summary="All images and labels")
def contents(user: AnyUser, output: stock.ResultType | None = None) -> Any:
    return stock.datastore(output)


@router.put("/", include_in_schema=False, deprecated=True)
@router.put("/image", summary="Upload an image")
def add_image(
    app: App,
    user: Annotator,
    scratch: Scratch,
    file: Upload,
    image: str | None = None,
    params: JsonText = "{}",
) -> dict[str, str]:
    """A file that can be read as one 3-D image (422). 409 where another image has the name: it is never replaced."""
    suffix = volume_suffix(file.filename)
    sent_name = Path((file.filename or f"image{suffix}").replace("\\", "/")).name
    image_id = safe_name(image or sent_name[: -len(suffix)], what="an image id")
    said = json_object(params, name="params")
    path = received(file, scratch)
    with named(path, sent_name):
        read_volume(path)
    return {"image": app.datastore().add_image(image_id, str(path), said | _by(user))}


@router.delete("/", include_in_schema=False, deprecated=True)
@router.delete("/image", summary="Remove an image and its labels")
def remove_image(app: App, user: Admin, id: str) -> dict[str, Any]:
    app.datastore().remove_image(app.images.require(id))
    return {}


@router.head("/image", summary="Whether an image exists")
def check_image(app: App, user: AnyUser, image: KnownImage, check_sum: str | None = None) -> Any:
    if app.images.from_datastore(image).path.is_dir():
        if check_sum:
            raise NotKnown("file with this checksum for image", image)  # the file is made anew for every download
        return {}
    return stock.download_image(image, check_only=True, check_sum=check_sum)


@router.get("/image", summary="Download an image")
def download_image(
    app: App, user: AnyUser, image: KnownImage, scratch: Scratch, request: Request, client_id: str = ""
) -> Response:
    """The stored file, or a NIfTI file with the same voxel indices where a folder of DICOM files is stored."""
    note_opened(app, image, request, client_id)
    source = app.images.from_datastore(image)
    if source.path.is_dir():
        copy = scratch / f"{image}.nii.gz"
        write_volume(app.images.open(source).volume, copy)
        return FileResponse(copy, media_type="application/gzip", filename=copy.name)
    return stock.download_image(image)


@router.get("/image/info", summary="What is known of an image")
def image_info(app: App, user: AnyUser, image: KnownImage) -> Any:
    return app.datastore().get_image_info(image)


@router.put("/image/info", summary="Add to what is known of an image")
def update_image_info(app: App, user: Annotator, image: KnownImage, info: JsonText = "{}") -> Any:
    return app.datastore().update_image_info(image, json_object(info, name="info") | _by(user))


def _by(user: User) -> dict[str, str]:
    """What is noted of whoever says something, where people log in."""
    return {"user": user.username} if user.username else {}


@router.put("/label", summary="Save a label")
def save_label(
    app: App,
    user: Annotator,
    request: Request,
    image: KnownImage,
    scratch: Scratch,
    label: Upload,
    params: JsonText = "{}",
    tag: str = "",
) -> dict[str, Any]:
    """Without a tag, or as ``partial``, a submission: the answer says which slices count as annotated now. ``final``
    declares its labels finished as well, unless ``partial`` in ``params`` says otherwise. Other tags keep the file.
    """
    file = received(label, scratch, allowed=(*VOLUME_SUFFIXES, ".bin"))
    said = json_object(params, name="params")
    datastore = app.datastore()
    if tag not in ("", PARTIAL, FINAL):
        label_id = datastore.save_label(image, str(file), safe_name(tag, what="a label tag"), said)
        answer: dict[str, Any] = {"tag": tag}
    else:
        require_keys(said, SUBMISSION, where="params")
        said["client_id"] = reader(said.get("client_id"), request)
        label_id, answer = image, datastore.submit(image, file, said, tag=tag).answer()
    noted = app.on_save_label(image, label_id) or {}
    return {"image": image, "label": label_id, **answer, **noted}


@router.delete("/label", summary="Remove a label")
def remove_label(app: App, user: Admin, id: str, tag: str) -> dict[str, Any]:
    require_label(app, id, tag)
    app.datastore().remove_label(id, tag)
    return {}


@router.head("/label", summary="Whether a label exists")
def check_label(app: App, user: AnyUser, image: str, tag: str) -> Any:
    require_label(app, image, tag)
    return stock.download_label(image, tag, check_only=True)


@router.get("/label", summary="Download a label")
def download_label(app: App, user: AnyUser, label: str, tag: str) -> Any:
    require_label(app, label, tag)
    return stock.download_label(label, tag)


@router.get("/label/info", summary="What is known of a label")
def label_info(app: App, user: AnyUser, label: str, tag: str) -> Any:
    require_label(app, label, tag)
    return app.datastore().get_label_info(label, tag)


@router.put("/label/info", summary="Add to what is known of a label")
def update_label_info(app: App, user: Annotator, request: Request, label: str, tag: str, info: JsonText = "{}") -> Any:
    """With ``partial`` in ``info`` this is ``PUT /datastore/annotations``."""
    require_label(app, label, tag)
    said = json_object(info, name="info")
    datastore = app.datastore()
    if "partial" in said and tag in (PARTIAL, FINAL):
        client = reader(said.get("client_id"), request)
        return datastore.change(label, said["partial"], client=client).answer()
    return datastore.update_label_info(label, tag, said | _by(user))


@router.put("/updatelabelinfo", include_in_schema=False, deprecated=True)
def update_label_info_once_more(
    app: App, user: Annotator, request: Request, label: str, tag: str, params: JsonText = "{}"
) -> Any:
    return update_label_info(app, user, request, label, tag, params)


@router.get("/dataset", summary="All finished images and labels as a ZIP file")
def download_dataset(
    app: App, user: Annotator, background_tasks: BackgroundTasks, limit_cases: int | None = None
) -> Response:
    datastore = app.datastore()
    if not datastore.datalist():
        raise NotKnown("label with the tag", "final", step="The archive holds finished labels; save one first")
    archive = datastore.get_dataset_archive(limit_cases)
    background_tasks.add_task(remove_file, archive)
    return FileResponse(archive, media_type="application/zip", filename="dataset.zip")


slices = APIRouter(prefix="/datastore/annotations", tags=["Datastore"], route_class=CheckedJson)


@slices.get("", summary="Which slices of an image are annotated")
def known_slices(app: App, user: AnyUser, image: KnownImage) -> dict[str, Any]:
    """``partial`` as submissions say it, whether the volume is ``finished``, and every revision's summary."""
    known = app.datastore().annotations(image)
    revisions = [
        {
            "revision": revision.number,
            "client_id": revision.client,
            "when": revision.when,
            "counted": summarise(revision).splitlines(),
        }
        for revision in known.revisions
    ]
    return {"partial": write_partial(known), "finished": known.finished, "revisions": revisions}


@slices.put("", summary="Withdraw, accept, finish or reopen slices and labels")
def change_slices(
    app: App, user: Annotator, request: Request, image: KnownImage, partial: JsonText, client_id: JsonText = ""
) -> dict[str, Any]:
    """``partial`` is what ``params.partial`` is in a submission. Slices listed as ``annotated`` are right as the
    client was last sent them; ``withdraw`` and ``reopen`` take back what was said.
    """
    return app.datastore().change(image, partial, client=reader(client_id, request)).answer()


class DrawnSlice(BaseModel):
    """One label on one slice, as ``slice_mask`` of ``sam_2d`` says it."""

    label: str = Field(max_length=64, description="Its name.", examples=["liver"])
    mask: dict[str, Any] = Field(
        description="index, axis (2 are the stored slices), and data: the pixels by rows, a byte each, 0 where the "
        "label is not, deflated (zlib) and in base64. All 0 says that the label is not on the slice.",
        examples=[{"axis": 2, "index": 31, "encoding": "zlib", "data": "eJxjYBgFo2AUDFcAAAQAAAE="}],
    )
    client_id: str = Field("", description="Who drew it.", examples=["reader-a"])


@slices.put("/slice", summary="Save one label on one slice")
def save_slice(app: App, user: Annotator, request: Request, image: KnownImage, drawn: DrawnSlice) -> dict[str, Any]:
    """The slice counts as annotated, or as empty, at once. No other slice is touched, and nothing else is sent: some
    kilobytes where ``PUT /datastore/label`` takes a mask of the whole volume."""
    datastore = app.datastore()
    axis, index, mask = slice_from_json(drawn.mask, datastore.grid(image))
    key = SliceKey(drawn.label, axis, index)
    answer = datastore.submit_slice(image, key, mask, client=reader(drawn.client_id, request)).answer()
    return {"image": image, "label": image, **answer, **(app.on_save_label(image, image) or {})}


@slices.delete("", summary="Forget all that is known of an image's slices")
def forget_slices(app: App, user: Admin, image: KnownImage) -> dict[str, Any]:
    app.datastore().forget(image)
    return {}


@slices.post("/opened", summary="Say that an image was opened")
def opened(app: App, user: AnyUser, request: Request, image: KnownImage, client_id: str = "") -> dict[str, Any]:
    """The client's screen shows nothing of it yet: ``finish_volume`` counts only what is shown from now on."""
    note_opened(app, image, request, client_id)
    return {}


@slices.get("/masks", summary="All masks of an image, to be shown again")
def masks(
    app: App,
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
    offered = app.services[FEWSHOT].offered
    volume, values = app.datastore().show_again(image, client=reader(client_id, request), order=offered)
    path = write_mask(volume.array, volume, MaskFormat(dtype=str(volume.array.dtype), compress=compress))
    background_tasks.add_task(remove_file, path)
    answer = FileResponse(path, media_type="application/octet-stream", filename="masks.nrrd")
    answer.headers[LABELS_HEADER] = in_header(values)
    return answer
