"""``POST /infer/{model}``: the whole contract of the stock route, in a thread, with checked names."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import Response
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.utils.others.generic import remove_file

import ssmsam
from ssmsam.imaging.dicom_seg import AlgorithmNotes, write_seg
from ssmsam.imaging.reading import read_volume
from ssmsam.server.dicomweb import DicomWebArchive
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.identifiers import VOLUME_SUFFIXES
from ssmsam.server.images import Source
from ssmsam.server.routes.common import (
    DETAIL_HEADER,
    LABELS_HEADER,
    AnyUser,
    JsonText,
    MaybeUpload,
    Scratch,
    in_header,
    json_object,
    reader,
    received,
    the_app,
    watched,
)

logger = logging.getLogger(__name__)
router = APIRouter(tags=["Infer"])


@router.post("/infer/{model}", summary="Run inference")
async def infer(
    background_tasks: BackgroundTasks,
    request: Request,
    user: AnyUser,
    scratch: Scratch,
    model: str,
    image: str = "",
    session_id: str = "",
    params: JsonText = "{}",
    file: MaybeUpload = None,
    label: MaybeUpload = None,
    output: ResultType | None = None,
) -> Any:
    """Segment an image of the datastore (``image``), of a session (``session_id``) or of this request (``file``).

    ``params`` is a JSON object with prompts and options; ``label`` may hold a mask, such as scribbles. ``output``
    chooses the answer: ``image`` (the mask file), ``json`` (its details), ``dicom_seg``, or both as multipart. The
    work ends when the client hangs up, except that of commands such as ``finish_volume``.
    """

    def work() -> Any:
        return _infer(background_tasks, request, scratch, model, image, session_id, params, file, label, output)

    return await watched(request, work)


def _infer(
    background_tasks: BackgroundTasks,
    request: Request,
    scratch: Path,
    model: str,
    image: str,
    session_id: str,
    params: str,
    file: UploadFile | None,
    label: UploadFile | None,
    output: ResultType | None,
) -> Any:
    app = the_app()
    options = json_object(params, name="params")
    app.require_options(options, app.require_model(model))
    if output == ResultType.dicom_seg:
        _require_dicom_store()
    source = _source(image, session_id, file, scratch)
    client = reader(options.get("client_id"), request)
    asked = {**options, "model": model, "image": source, "client_id": client}
    if label:
        asked["label_file"] = str(_label_file(label, source, scratch))
    logger.info("Inference: model=%s image=%s options=%s", model, source.image_id or source.name, options)
    result = app.infer(asked)
    if output == ResultType.dicom_seg:
        result["dicom_seg"] = _dicom_seg(source, result)
        background_tasks.add_task(remove_file, result["dicom_seg"])
    answer = send_response(app.datastore(), result, output, background_tasks)
    if isinstance(answer, Response):
        details = result["params"]
        answer.headers[LABELS_HEADER] = in_header(details.get("label_names") or {})
        answer.headers[DETAIL_HEADER] = in_header(details.get("detail") or "")
    return answer


def _source(image: str, session_id: str, file: UploadFile | None, scratch: Path) -> Source:
    """The image to work on. As in MONAI Label, a session is preferred to a file, and a file to an id."""
    app = the_app()
    if session_id:
        return app.images.from_session(app.sessions(), session_id)
    if file:
        return app.images.from_upload(received(file, scratch))
    return app.images.from_datastore(image)


def _label_file(label: UploadFile, source: Source, scratch: Path) -> Path:
    path = received(label, scratch, allowed=(*VOLUME_SUFFIXES, ".bin"))
    if path.suffix != ".bin":
        return path
    converted = Path(binary_to_image(str(source.path), str(path)))  # raw voxels on the image's grid
    return Path(shutil.move(converted, scratch / f"label-{converted.name}"))


def _require_dicom_store() -> None:
    if not isinstance(the_app().datastore(), DicomWebArchive):
        raise InvalidRequest("output=dicom_seg needs studies from a DICOMweb server; ask for output=image")


def _dicom_seg(source: Source, result: dict[str, Any]) -> str:
    """Write the mask as DICOM SEG; returns its path."""
    if not result["params"].get("voxels"):
        remove_file(result["file"])
        raise InvalidRequest("the mask is empty: there is nothing to write as DICOM SEG")
    with tempfile.NamedTemporaryFile(prefix="ssmsam-", suffix=".dcm", delete=False) as file:
        path = file.name
    algorithm = AlgorithmNotes(name="ssmsam", version=ssmsam.__version__, kind="SEMIAUTOMATIC")
    try:
        write_seg(read_volume(result["file"]), result["params"]["label_names"], source.path, path, algorithm=algorithm)
    except BaseException:
        remove_file(path)
        raise
    finally:
        remove_file(result["file"])
    return path
