"""The studies as a list shows them, and a first look at one of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from ssmsam.server.routes.common import AnyUser, App, KnownImage, note_opened
from ssmsam.service.study_list import look, modality, study_list
from ssmsam.volume.writing import nifti_pieces

router = APIRouter(prefix="/studies", tags=["Studies"])


@router.get("", summary="Every image with its state and its annotated labels")
@router.get("/", include_in_schema=False)
def listed(app: App, user: AnyUser) -> dict[str, Any]:
    """``studies`` by name: ``image``, ``state`` (new, in work, finished, unreadable), ``reason``, ``labels`` (label to
    number of annotated slices), and what is known without opening it."""
    store = app.datastore()
    rows = []
    for one in study_list(store, app.images):
        info = store.get_image_info(one.image) if store.files.remote else {}
        about = {key: info[key] for key in ("Modality", "PatientID", "StudyDate", "StudyInstanceUID") if info.get(key)}
        rows.append({**asdict(one), "labels": dict(one.labels), "info": about})
    return {"studies": rows, "remote": store.files.remote}


@router.get("/about", summary="The modality, the grid and the file type of one image")
def about(app: App, user: AnyUser, image: KnownImage) -> dict[str, Any]:
    """``shape`` and ``spacing`` are (columns, rows, slices), ``spacing`` in millimetres. It is opened for this."""
    source = app.images.from_datastore(image)
    opened = app.images.open(source)
    grid = opened.volume.grid
    suffix = ".nii.gz" if source.path.is_dir() else "".join(source.path.suffixes[-2:])
    return {
        "image": image,
        "modality": modality(opened),
        "shape": list(grid.shape[::-1]),
        "spacing": [round(float(mm), 4) for mm in grid.spacing[::-1]],
        "file": "image" + (suffix if suffix.endswith(".gz") else source.path.suffix or suffix),
    }


@router.get("/thumbnail", summary="A small picture of the middle slice", response_class=Response)
def thumbnail(app: App, user: AnyUser, image: KnownImage) -> Response:
    """PNG, head or front up; the header ``X-Ssmsam-Modality`` says CT, MR or what the file says."""
    found = look(app.images, app.images.from_datastore(image))
    kept = {"X-Ssmsam-Modality": found.modality, "Cache-Control": "private, max-age=300"}
    return Response(found.thumbnail(), media_type="image/png", headers=kept)


@router.get("/picture", summary="One slice as a picture, at once", response_class=Response)
def picture(
    app: App,
    user: AnyUser,
    image: KnownImage,
    slice: Annotated[
        int | None, Query(ge=0, description="the stored slice, from 0; the middle one unless told")
    ] = None,
) -> Response:
    """PNG of 8 bits, rows by columns as stored, in the window of its modality. Of a file no more is read than it takes.

    Headers: ``X-Ssmsam-Slice`` and ``X-Ssmsam-Count`` (which slice of how many), ``X-Ssmsam-Towards`` (the sides of the
    patient to which rows and columns grow), ``X-Ssmsam-Spacing`` (millimetres between rows and columns).
    """
    found = look(app.images, app.images.from_datastore(image), slice)
    _, rows, columns = found.grid.spacing
    told = {
        "X-Ssmsam-Slice": str(found.index),
        "X-Ssmsam-Count": str(found.grid.shape[0]),
        "X-Ssmsam-Towards": " ".join(found.towards),
        "X-Ssmsam-Spacing": f"{rows:.4f} {columns:.4f}",
        "X-Ssmsam-Modality": found.modality,
        "Cache-Control": "private, max-age=300",
    }
    return Response(found.picture(), media_type="image/png", headers=told)


@router.get("/image", summary="An image as NIfTI without compression", response_class=StreamingResponse)
def whole(app: App, user: AnyUser, request: Request, image: KnownImage, client_id: str = "") -> StreamingResponse:
    """The voxels as the server has them open, in stored order: nothing has to be unpacked by the viewer. It counts as
    opened, as ``GET /datastore/image`` does."""
    note_opened(app, image, request, client_id)
    size, pieces = nifti_pieces(app.images.open(app.images.from_datastore(image)).volume)
    sent = {"Content-Length": str(size), "Content-Disposition": 'attachment; filename="image.nii"'}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=sent)
