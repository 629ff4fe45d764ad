"""The studies as a list shows them, and a first look at one of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zipfile import ZIP_STORED, ZipFile

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from ssmsam.annotation.log import Review, ReviewVerdict, WorkSummary
from ssmsam.dicom.measurements import Measurement, as_prompts, measurements
from ssmsam.dicom.series import find_series
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.json_text import require_storable
from ssmsam.server.clients.rest import LABELS_HEADER, in_header, read_names
from ssmsam.server.routes.common import Annotator, AnyUser, App, KnownImage, Scratch, long, note_opened, reader
from ssmsam.service.exports import (
    FORMATS,
    annotated_labels,
    export_formats,
    studies_cases,
    write_labels,
    write_nnunet,
)
from ssmsam.service.study_list import look, modality, study_list
from ssmsam.volume.errors import named
from ssmsam.volume.writing import nifti_pieces

router = APIRouter(prefix="/studies", tags=["Studies"])

DATASET = "Dataset001_ssmsam"
"""nnU-Net wants a number and a name."""
MOST_NOTE = 2000
"""Characters of a review's note: a guess, a page of text."""


@router.get("", summary="Every image with its state and its annotated labels")
def listed(app: App, user: AnyUser) -> dict[str, Any]:
    """``studies`` by name: ``image``, ``state`` (new, in work, to review, finished, unreadable), ``reason``, ``labels``
    (label to number of annotated slices), ``expected`` (label to the Dice that was expected last), ``workers`` (who
    worked on it, the latest first, and for how many ``seconds``), the last ``review``, and what is known
    without opening it."""
    store = app.datastore()
    rows = []
    for one in study_list(store, app.images):
        info = store.get_image_info(one.image) if store.files.remote else {}
        about = {key: info[key] for key in ("Modality", "PatientID", "StudyDate", "StudyInstanceUID") if info.get(key)}
        row = {"image": one.image, "state": one.state, "reason": one.reason, "labels": dict(one.labels), "info": about}
        rows.append({**row, **_work(one.work)})
    return {"studies": rows, "remote": store.files.remote}


def _work(work: WorkSummary) -> dict[str, Any]:
    workers = [
        {"client": who, "last": one.last, "seconds": round(one.seconds), "annotated": one.annotated}
        for who, one in sorted(work.workers.items(), key=lambda known: known[1].last, reverse=True)
        if one.annotated or one.seconds  # rather than that they opened it
    ]
    return {
        "expected": {label: round(dice, 3) for label, dice in work.expected.items()},
        "workers": workers,
        "seconds": sum(one["seconds"] for one in workers),
        "review": None if work.review is None else _review(work.review),
    }


def _review(review: Review) -> dict[str, Any]:
    return {"verdict": review.verdict.value, "note": review.note, "client": review.who, "when": review.when}


@router.get("/about", summary="The modality, the grid and the file type of one image")
def about(app: App, user: AnyUser, image: KnownImage) -> dict[str, Any]:
    """``shape`` and ``spacing`` are (columns, rows, slices), ``spacing`` in millimetres; ``formats`` are those that
    ``GET /studies/export`` can make of it. It is opened for this."""
    source = app.images.from_datastore(image)
    opened = app.images.open(source)
    grid = opened.volume.grid
    suffix = ".nii.gz" if source.path.is_dir() else "".join(source.path.suffixes[-2:])
    return {
        "image": image,
        "modality": modality(opened),
        "shape": list(grid.shape[::-1]),
        "spacing": [round(float(mm), 4) for mm in grid.spacing[::-1]],
        "formats": export_formats(source.path),
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


@router.post("/review", summary="Accept a finished image, or send it back with a note")
def review(
    app: App,
    user: Annotator,
    request: Request,
    image: KnownImage,
    verdict: Annotated[ReviewVerdict, Query(description="accept, or send_back: its labels are open again then")],
    note: Annotated[str, Query(max_length=MOST_NOTE, description="what is to be changed, where it is sent back")] = "",
    client_id: str = "",
) -> dict[str, Any]:
    """What was finished with ``finish_volume`` is to be reviewed. Where people log in it has to be somebody who
    annotated nothing of it (403). 409 where there is nothing to review."""
    require_storable(note, name="note")
    store = app.datastore()
    given = store.review(image, verdict, note=note.strip(), client=reader(client_id, request))
    state = store.states()[image]
    said = "accepted" if given.verdict is ReviewVerdict.ACCEPT else f"sent back: {given.note}"
    return {"image": image, "state": state, "review": _review(given), "detail": said}


@router.get("/agreement", summary="How far those agree who annotated the same slices of an image")
def agreement(app: App, user: AnyUser, image: KnownImage) -> dict[str, Any]:
    """For each label and each pair of clients that annotated a slice whole: the Dice over the pixels of all slices that
    both drew, and that of each slice. A mask that was taken over unchanged is not counted: it was not drawn."""
    found = [
        {
            "label": one.label,
            "clients": list(one.clients),
            "slices": len(one.slices),
            "dice": round(one.dice, 4),
            "per_slice": [
                {"axis": 2 - key.axis, "slice": key.index, "dice": round(dice, 4)}
                for key, dice in zip(one.slices, one.per_slice, strict=True)
            ],
        }
        for one in app.datastore().agreement(image)
    ]
    return {"image": image, "agreement": found}


@router.get("/export", summary="What is annotated on an image, as a file", response_class=FileResponse)
@long
def export(
    app: App,
    user: AnyUser,
    request: Request,
    scratch: Scratch,
    image: KnownImage,
    format: Annotated[str, Query(description=f"one of {', '.join(FORMATS)}")] = "nifti",
    labels: Annotated[str, Query(description="which labels, separated by commas; all unless told")] = "",
) -> FileResponse:
    """A label map, DICOM SEG or RT Structure Set of the annotated slices. The header ``X-Ssmsam-Labels`` names the
    values. The last two need an image that is stored as DICOM; they are read back and compared before they are sent.
    Labels that overlap do so in them, while a label map holds one a voxel."""
    order = app.services[FEWSHOT].offered
    mask, values, covered = annotated_labels(app.datastore().annotations(image), order=order, only=read_names(labels))
    source = app.images.from_datastore(image).path
    suffix = FORMATS.get(format, "")
    path = write_labels(mask, values, scratch / f"labels{suffix}", format=format, source=source, covered=covered)
    kind = {"dicom_seg": "seg", "rtstruct": "rtstruct"}.get(format, "labels")
    answer = FileResponse(path, media_type="application/octet-stream", filename=f"{image}_{kind}{suffix}")
    answer.headers[LABELS_HEADER] = in_header(values)
    return answer


@router.get("/dataset", summary="Annotated images as a data set of nnU-Net", response_class=FileResponse)
@long
def dataset(
    app: App,
    user: Annotator,
    request: Request,
    scratch: Scratch,
    only: Annotated[
        Literal["finished", "annotated"], Query(description="finished images, or all annotated")
    ] = "finished",
    labels: Annotated[str, Query(description="which labels, in their order, separated by commas")] = "",
    modality: Annotated[str, Query(description="only images of this one, as in CT")] = "",
) -> FileResponse:
    """A ZIP archive of a data set folder, version 2: ``dataset.json``, ``imagesTr``, ``labelsTr``, and ``export.json``,
    which says what was left out and why. Voxels of which nothing is known have the label ``ignore``."""
    cases = studies_cases(app.datastore(), app.images)
    write_nnunet(cases, scratch / DATASET, labels=read_names(labels), finished=only == "finished", modality=modality)
    archive = scratch / f"{DATASET}.zip"
    with ZipFile(archive, "w", ZIP_STORED) as packed:  # what is large in it is compressed already
        for file in sorted(one for one in (scratch / DATASET).rglob("*") if one.is_file()):
            packed.write(file, file.relative_to(scratch))
    return FileResponse(archive, media_type="application/zip", filename=archive.name)


@router.get("/measurements", summary="What was measured on an image before, as prompts")
@long
def measured(app: App, user: AnyUser, request: Request, image: KnownImage) -> dict[str, Any]:
    """Points, lines and outlines in the reports (SR) and presentation states (PR) of the image's study that lie on its
    slices. ``prompts`` of each can be added to ``params`` of ``sam_2d`` as they are. None for files that are no DICOM.
    """
    folder = app.images.from_datastore(image).path
    found: list[Measurement] = []
    if folder.is_dir():
        with named(folder, image):
            found = measurements(app.datastore().files.drawn_on(image), find_series(folder))
    told = [
        {
            "kind": one.kind,
            "source": one.source,
            "text": one.text,
            "slice": one.slice,
            "points": [[round(x, 2), round(y, 2), one.slice] for x, y in one.points.tolist()],
            "prompts": as_prompts(one),
        }
        for one in found
    ]
    return {"image": image, "measurements": told}
