"""The datastore's routes: every id, tag and file is checked before MONAI Label's own function runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import datastore as stock
from monailabel.utils.others.generic import remove_file

from ssmsam.server.clients.rest import SUBMISSION, require_keys
from ssmsam.server.routes.common import (
    Admin,
    Annotator,
    AnyUser,
    JsonText,
    KnownId,
    KnownImage,
    Scratch,
    Upload,
    json_object,
    note_opened,
    reader,
    received,
    require_label,
    the_app,
)
from ssmsam.service.annotated_studies import FINAL, PARTIAL
from ssmsam.service.errors import NotKnown
from ssmsam.service.identifiers import VOLUME_SUFFIXES, safe_name, volume_suffix
from ssmsam.volume.writing import write_volume

router = APIRouter(prefix="/datastore", tags=["Datastore"])


@router.get("/", summary="All images and labels")
def contents(user: AnyUser, output: stock.ResultType | None = None) -> Any:
    return stock.datastore(output)


@router.put("/", include_in_schema=False, deprecated=True)
@router.put("/image", summary="Upload an image")
def add_image(
    user: Annotator,
    background_tasks: BackgroundTasks,
    file: Upload,
    image: str | None = None,
    params: JsonText = "{}",
) -> dict[str, str]:
    suffix = volume_suffix(file.filename)
    sent_name = Path((file.filename or "").replace("\\", "/")).name
    safe_name(image or sent_name[: -len(suffix)], what="an image id")
    json_object(params, name="params")
    added: dict[str, str] = stock.add_image(background_tasks, image, params, file, user.username)
    return added


@router.delete("/", include_in_schema=False, deprecated=True)
@router.delete("/image", summary="Remove an image and its labels")
def remove_image(user: Admin, id: KnownId) -> dict[str, Any]:
    return stock.remove_image(id, user.username)


@router.head("/image", summary="Whether an image exists")
def check_image(user: AnyUser, image: KnownImage, check_sum: str | None = None) -> Any:
    if the_app().images.from_datastore(image).path.is_dir():
        if check_sum:
            raise NotKnown("file with this checksum for image", image)  # the file is made anew for every download
        return {}
    return stock.download_image(image, check_only=True, check_sum=check_sum)


@router.get("/image", summary="Download an image")
def download_image(
    user: AnyUser, image: KnownImage, background_tasks: BackgroundTasks, request: Request, client_id: str = ""
) -> Response:
    """The stored file, or a NIfTI file with the same voxel indices where a folder of DICOM files is stored."""
    app = the_app()
    note_opened(image, request, client_id)
    source = app.images.from_datastore(image)
    if source.path.is_dir():
        folder = tempfile.mkdtemp(prefix="ssmsam-")
        background_tasks.add_task(remove_file, folder)
        copy = Path(folder) / f"{image}.nii.gz"
        write_volume(app.images.open(source).volume, copy)
        return FileResponse(copy, media_type="application/gzip", filename=copy.name)
    return stock.download_image(image)


@router.get("/image/info", summary="What is known of an image")
def image_info(user: AnyUser, image: KnownImage) -> dict[str, Any]:
    found: dict[str, Any] = stock.get_image_info(image)
    return found


@router.put("/image/info", summary="Add to what is known of an image")
def update_image_info(user: Annotator, image: KnownImage, info: JsonText = "{}") -> Any:
    json_object(info, name="info")
    return stock.update_image_info(image, info, user.username)


@router.put("/label", summary="Save a label")
def save_label(
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
    app = the_app()
    datastore = app.datastore()
    if tag not in ("", PARTIAL, FINAL):
        label_id = datastore.save_label(image, str(file), safe_name(tag, what="a label tag"), said)
        answer: dict[str, Any] = {"tag": tag}
    else:
        require_keys(said, SUBMISSION, where="params")
        if tag == FINAL:
            said.setdefault("partial", {"complete": True})
        said["client_id"] = reader(said.get("client_id"), request)
        label_id, answer = image, datastore.submit(image, file, said).answer()
    noted = app.on_save_label(image, label_id) or {}
    return {"image": image, "label": label_id, **answer, **noted}


@router.delete("/label", summary="Remove a label")
def remove_label(user: Admin, id: str, tag: str) -> dict[str, Any]:
    require_label(id, tag)
    return stock.remove_label(id, tag, user.username)


@router.head("/label", summary="Whether a label exists")
def check_label(user: AnyUser, image: str, tag: str) -> Any:
    require_label(image, tag)
    return stock.download_label(image, tag, check_only=True)


@router.get("/label", summary="Download a label")
def download_label(user: AnyUser, label: str, tag: str) -> Any:
    require_label(label, tag)
    return stock.download_label(label, tag)


@router.get("/label/info", summary="What is known of a label")
def label_info(user: AnyUser, label: str, tag: str) -> dict[str, Any]:
    require_label(label, tag)
    found: dict[str, Any] = stock.get_label_info(label, tag)
    return found


@router.put("/label/info", summary="Add to what is known of a label")
def update_label_info(user: Annotator, request: Request, label: str, tag: str, info: JsonText = "{}") -> Any:
    """With ``partial`` in ``info`` this is ``PUT /datastore/annotations``."""
    require_label(label, tag)
    said = json_object(info, name="info")
    datastore = the_app().datastore()
    if "partial" in said and tag in (PARTIAL, FINAL):
        client = reader(said.get("client_id"), request)
        return datastore.change(label, said["partial"], client=client).answer()
    return stock.update_label_info(label, tag, info, user.username)


@router.put("/updatelabelinfo", include_in_schema=False, deprecated=True)
def update_label_info_once_more(
    user: Annotator, request: Request, label: str, tag: str, params: JsonText = "{}"
) -> Any:
    return update_label_info(user, request, label, tag, params)


@router.get("/dataset", summary="All finished images and labels as a ZIP file")
def download_dataset(user: Annotator, background_tasks: BackgroundTasks, limit_cases: int | None = None) -> Response:
    datastore = the_app().datastore()
    if not datastore.datalist():
        raise NotKnown("label with the tag", "final", step="The archive holds finished labels; save one first")
    archive = datastore.get_dataset_archive(limit_cases)
    background_tasks.add_task(remove_file, archive)
    return FileResponse(archive, media_type="application/zip", filename="dataset.zip")
