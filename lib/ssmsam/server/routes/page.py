"""The page's files, and what its list of studies asks for. Everything else it does over the calls of any client."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader
from monailabel.utils.others.generic import get_mime_type

import ssmsam
from ssmsam.server.routes.common import AnyUser, App, KnownImage, path_prefix
from ssmsam.service.errors import NotKnown
from ssmsam.service.study_list import modality, study_list, thumbnail

HERE = Path(__file__).parents[1] / "page"
NIIVUE = HERE / "niivue" / "niivue.js"
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self' blob: data:; font-src 'self' data:; worker-src 'self' blob: data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""A page may load from its own server alone; what it makes itself (pictures, decoders in workers) has blob: and data:
addresses."""

router = APIRouter(include_in_schema=False)
studies = APIRouter(prefix="/studies", tags=["Datastore"])


@cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)


def _page(request: Request, view: str) -> HTMLResponse:
    """Without data of patients: its scripts ask for them, with the login where there is one."""
    text = (
        _templates()
        .get_template(f"{view}.html")
        .render(root=path_prefix(request), view=view, version=ssmsam.__version__, niivue=NIIVUE.is_file())
    )
    return HTMLResponse(text, headers=SECURITY)


@router.get("/")
def studies_page(request: Request) -> HTMLResponse:
    """The list of studies."""
    return _page(request, "studies")


@router.get("/annotate")
def annotate_page(request: Request) -> HTMLResponse:
    """One study, named by ``?image=``."""
    return _page(request, "annotate")


@router.get("/dashboard")
def dashboard_page(request: Request) -> HTMLResponse:
    """The state of the server."""
    return _page(request, "dashboard")


@router.get("/page/{name}")
def page_file(name: str) -> FileResponse:
    """A script or style of the page."""
    known = {file.name: file for file in (*(HERE / "static").iterdir(), NIIVUE)}
    if name not in known or not known[name].is_file():
        raise NotKnown("file of the page", name, step="make setup brings what is taken from npm")
    return FileResponse(known[name], media_type=get_mime_type(name), headers=SECURITY)


@studies.get("", summary="Every image with its state and its annotated labels")
@studies.get("/", include_in_schema=False)
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


@studies.get("/about", summary="The modality, the grid and the file type of one image")
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


@studies.get("/thumbnail", summary="A small picture of the middle slice", response_class=Response)
def picture(app: App, user: AnyUser, image: KnownImage) -> Response:
    """PNG; the header ``X-Ssmsam-Modality`` says CT, MR or what the file says."""
    opened = app.images.open(app.images.from_datastore(image))
    return Response(
        thumbnail(opened),
        media_type="image/png",
        headers={"X-Ssmsam-Modality": modality(opened), "Cache-Control": "private, max-age=300"},
    )
