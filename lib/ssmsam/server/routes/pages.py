"""What a browser opens: our own page, OHIF as it comes with MONAI Label, and the reference of all REST calls.

They load nothing from elsewhere. Everything that our page does goes over the calls of any client.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader
from monailabel.endpoints import ohif as stock
from monailabel.utils.others.generic import get_mime_type

import ssmsam
from ssmsam.server.clients.ohif import below, index_with_script, no_archive_page, own_file
from ssmsam.server.routes.common import AnyUser, App, path_prefix
from ssmsam.service.errors import NotKnown

HERE = Path(__file__).parents[1] / "page"
NIIVUE = HERE / "niivue" / "niivue.js"
TEMPLATES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)
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
OHIF = Path(stock.__file__).resolve().parent / "static" / "ohif"
SERVER_COOKIE = "MONAILABEL_SERVER_URL"
"""Where OHIF's MONAI Label panel keeps the server's address. By itself it assumes port 8000."""
REFERENCE_FILES = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI and ReDoc, as that package brings them."""

router = APIRouter(include_in_schema=False)


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


def _page(request: Request, view: str) -> HTMLResponse:
    """Without data of patients: its scripts ask for them, with the login where there is one."""
    told = {"root": path_prefix(request), "view": view, "version": ssmsam.__version__, "niivue": NIIVUE.is_file()}
    return HTMLResponse(TEMPLATES.get_template(f"{view}.html").render(told), headers=SECURITY)


@router.get("/page/{name}")
def page_file(name: str) -> FileResponse:
    """A script or style of the page."""
    known = (*(HERE / "static").iterdir(), NIIVUE)
    file = _one_of(known, name, "file of the page", step="make setup brings what is taken from npm")
    return FileResponse(file, media_type=get_mime_type(name), headers=SECURITY)


@router.get("/reference-files/{name}")
def reference_file(name: str) -> FileResponse:
    """A script or style of the reference."""
    return FileResponse(_one_of(REFERENCE_FILES.iterdir(), name, "file of the reference"))


def _one_of(known: Iterable[Path], name: str, kind: str, step: str = "") -> Path:
    found = next((file for file in known if file.name == name and file.is_file()), None)
    if found is None:
        raise NotKnown(kind, name, step=step)
    return found


@router.get("/swagger")
def swagger(request: Request) -> HTMLResponse:
    """Swagger UI: every call, with a form to try it."""
    root = path_prefix(request)
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="ssmsam: REST calls",
        swagger_js_url=f"{root}/reference-files/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/reference-files/swagger-ui.css",
        swagger_favicon_url=f"{root}/favicon.ico",
        swagger_ui_parameters={"showExtensions": True, "defaultModelsExpandDepth": -1},
    )


@router.get("/docs")
def redoc(request: Request) -> HTMLResponse:
    """ReDoc: the same calls, to read."""
    root = path_prefix(request)
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title="ssmsam: REST reference",
        redoc_js_url=f"{root}/reference-files/redoc.standalone.js",
        redoc_favicon_url=f"{root}/favicon.ico",
        with_google_fonts=False,
    )


@router.get("/ohif/{path:path}")
def ohif(app: App, user: AnyUser, request: Request, path: str) -> Response:
    """A file of OHIF; for every other path its one page, which reads the path itself."""
    prefix = path_prefix(request)
    if mine := own_file(path):
        return FileResponse(mine, media_type=get_mime_type(str(mine)), headers={"Cache-Control": "no-cache"})
    file = (OHIF / path).resolve()
    if path and path != "index.html" and file.is_relative_to(OHIF) and file.is_file():
        if prefix and file.suffix in (".js", ".json", ".webapp"):
            return Response(below(prefix, file.read_text("utf-8")), media_type=get_mime_type(str(file)))
        return FileResponse(file, media_type=get_mime_type(str(file)))
    if path != "index.html" and "." in path.rpartition("/")[2]:
        raise NotKnown("file of OHIF", path)
    if app.datastore().files.remote:
        answer = HTMLResponse(index_with_script(OHIF / "index.html", prefix))
    else:
        answer = HTMLResponse(no_archive_page(str(request.base_url)))
    server = quote(str(request.base_url), safe="")
    answer.headers["Set-Cookie"] = f"{SERVER_COOKIE}={server}; Path={prefix}/ohif; SameSite=Lax"
    answer.headers["Cache-Control"] = "no-cache"
    return answer
