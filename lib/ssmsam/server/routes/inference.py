"""What the app offers, running a model on an image, and the image to annotate next.

``POST /infer/{model}`` has the whole contract of the stock route, in a thread, with checked names.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import Response
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.utils.others.generic import remove_file

import ssmsam
from ssmsam.dicom.seg_writer import AlgorithmNotes, write_seg
from ssmsam.reading import read_volume
from ssmsam.server.app import ServerApp
from ssmsam.server.clients.rest import DETAIL_HEADER, LABELS_HEADER, SAMPLE, in_header, require_keys
from ssmsam.server.clients.slicer import title
from ssmsam.server.routes.common import (
    AnyUser,
    App,
    CheckedJson,
    JsonText,
    MaybeUpload,
    Scratch,
    json_object,
    long,
    note_opened,
    reader,
    received,
)
from ssmsam.server.routes.sessions import session_image
from ssmsam.server.tasks.strategies import note_offer
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.identifiers import VOLUME_SUFFIXES
from ssmsam.service.images import Source

logger = logging.getLogger(__name__)
PAGE = "page"
"""How our own page calls itself as a viewer."""
router = APIRouter(route_class=CheckedJson)


@router.get("/info/", tags=["App"], summary="What this app offers")
def info(app: App, user: AnyUser) -> dict[str, Any]:
    return app.info()


@router.post("/infer/{model}", tags=["Infer"], summary="Run inference")
@long
def infer(
    app: App,
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
    options = json_object(params, name="params")
    app.require_options(options, app.require_model(model))
    if output == ResultType.dicom_seg and not app.datastore().files.remote:
        raise InvalidRequest("output=dicom_seg needs studies from a DICOMweb server; ask for output=image")
    if options.get("answer") == "slice" and output != ResultType.json:
        raise InvalidRequest("answer 'slice' comes in the details, without a file: ask with output=json")
    source = _source(app, image, session_id, file, scratch)
    client = reader(options.get("client_id"), request)
    if label:
        received(label, scratch, allowed=(*VOLUME_SUFFIXES, ".bin"))  # as scribbles send one; no model reads it
    asked = {**options, "model": model, "client_id": client}
    brief = {name: value for name, value in options.items() if name not in ("scribbles", "lasso")}  # lines are long
    logger.info("Inference: model=%s image=%s options=%s", model, source.image_id or source.name, brief)
    result = app.run(app.command(asked, source))
    _name_page(result["params"], source, str(request.base_url), viewer=str(options.get("viewer") or ""))
    if output == ResultType.dicom_seg:
        result["dicom_seg"] = _dicom_seg(source, result, scratch)
    answer = send_response(app.datastore(), result, output, background_tasks)
    if isinstance(answer, Response):
        details = result["params"]
        answer.headers[LABELS_HEADER] = in_header(details.get("label_names") or {})
        answer.headers[DETAIL_HEADER] = in_header(details.get("detail") or "")
    return answer


def _name_page(details: dict[str, Any], source: Source, server: str, *, viewer: str) -> None:
    """Let the details say where a browser shows the study, and with them the sentence that people read after a proposal
    and when a volume was finished."""
    if not source.image_id:
        return
    details["page"] = f"{server}annotate?image={quote(source.image_id)}"
    if viewer != PAGE and ("receipt" in details or "dice_estimate" in details):
        details["detail"] = f"{details['detail']}; in the browser: {details['page']}"


def _source(app: ServerApp, image: str, session_id: str, file: UploadFile | None, scratch: Path) -> Source:
    """The image to work on. As in MONAI Label, a session is preferred to a file, and a file to an id."""
    if session_id:
        return app.images.from_session(session_image(app.sessions(), session_id))
    if file:
        return app.images.from_upload(received(file, scratch))
    return app.images.from_datastore(image)


def _dicom_seg(source: Source, result: dict[str, Any], scratch: Path) -> str:
    """Write the mask as DICOM SEG; returns its path."""
    path = scratch / "mask.dcm"
    algorithm = AlgorithmNotes(name="ssmsam", version=ssmsam.__version__, kind="SEMIAUTOMATIC")
    try:
        if not result["params"].get("voxels"):
            raise InvalidRequest("the mask is empty: there is nothing to write as DICOM SEG")
        write_seg(read_volume(result["file"]), result["params"]["label_names"], source.path, path, algorithm=algorithm)
    finally:
        remove_file(result["file"])
    return str(path)


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="The next image and slices to annotate")
@long
def next_sample(
    app: App, user: AnyUser, strategy: str, request: Request, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Without an ``id`` in the answer nothing is left, and ``message`` says so."""
    asked = dict(params or {})
    app.require_strategy(strategy)
    require_keys(asked, SAMPLE, where="the request")
    name = asked.get("client_id") or user.username
    client = reader(name, request)
    found = app.next_sample({**asked, "strategy": strategy, "client_id": client})
    if not found.get("id"):
        return found
    if not asked.get("image"):  # a viewer opens what it is offered; one that names an image has it open
        note_opened(app, found["id"], request, name or "")
    info = note_offer(app.datastore(), found["id"], strategy, client=client)
    slices = found.get("slices") if found.get("axis", 2) == 2 else None  # those that are embedded
    app.background.prefer(found["id"], near=slices[0] if slices else None, client=client)
    shown = {**found, **info}
    if found.get("hint") and info.get("PatientID"):  # a viewer shows this as the volume's name
        shown["PatientID"] = title(info["PatientID"], found["hint"])
    return shown
