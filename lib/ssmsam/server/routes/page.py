"""The page's files. Everything that it does goes over the calls of any client."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader
from monailabel.utils.others.generic import get_mime_type

import ssmsam
from ssmsam.server.routes.common import path_prefix
from ssmsam.service.errors import NotKnown

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


TEMPLATES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)


def _page(request: Request, view: str) -> HTMLResponse:
    """Without data of patients: its scripts ask for them, with the login where there is one."""
    told = {"root": path_prefix(request), "view": view, "version": ssmsam.__version__, "niivue": NIIVUE.is_file()}
    return HTMLResponse(TEMPLATES.get_template(f"{view}.html").render(told), headers=SECURITY)


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
