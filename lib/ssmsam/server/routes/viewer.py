"""Pages: OHIF as it comes with MONAI Label, and the reference of all REST calls. They load nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from monailabel.endpoints import ohif as stock
from monailabel.utils.others.generic import get_mime_type

from ssmsam.server.clients.ohif import below, index_with_script, no_archive_page, own_file
from ssmsam.server.routes.common import AnyUser, App, path_prefix
from ssmsam.service.errors import NotKnown

router = APIRouter(prefix="/ohif", include_in_schema=False)

FILES = Path(stock.__file__).resolve().parent / "static" / "ohif"

SERVER_COOKIE = "MONAILABEL_SERVER_URL"
"""Where OHIF's MONAI Label panel keeps the server's address. By itself it assumes port 8000."""


@router.get("/{path:path}")
def page(app: App, user: AnyUser, request: Request, path: str) -> Response:
    """A file of OHIF; for every other path its one page, which reads the path itself."""
    prefix = path_prefix(request)
    if mine := own_file(path):
        return FileResponse(mine, media_type=get_mime_type(str(mine)), headers={"Cache-Control": "no-cache"})
    file = (FILES / path).resolve()
    if path and path != "index.html" and file.is_relative_to(FILES) and file.is_file():
        if prefix and file.suffix in (".js", ".json", ".webapp"):
            return Response(below(prefix, file.read_text("utf-8")), media_type=get_mime_type(str(file)))
        return FileResponse(file, media_type=get_mime_type(str(file)))
    if path != "index.html" and "." in path.rpartition("/")[2]:
        raise NotKnown("file of OHIF", path)
    if app.datastore().files.remote:
        answer = HTMLResponse(index_with_script(FILES / "index.html", prefix))
    else:
        answer = HTMLResponse(no_archive_page(str(request.base_url)))
    server = quote(str(request.base_url), safe="")
    answer.headers["Set-Cookie"] = f"{SERVER_COOKIE}={server}; Path={prefix}/ohif; SameSite=Lax"
    answer.headers["Cache-Control"] = "no-cache"
    return answer


reference = APIRouter(include_in_schema=False)

REFERENCE_FILES = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI and ReDoc, as that package brings them."""
AT = "/reference-files"


@reference.get("/swagger")
def swagger(request: Request) -> HTMLResponse:
    """Swagger UI: every call, with a form to try it."""
    root = path_prefix(request)
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="ssmsam: REST calls",
        swagger_js_url=f"{root}{AT}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{AT}/swagger-ui.css",
        swagger_favicon_url=f"{root}/favicon.ico",
        swagger_ui_parameters={"showExtensions": True, "defaultModelsExpandDepth": -1},
    )


@reference.get("/docs")
def redoc(request: Request) -> HTMLResponse:
    """ReDoc: the same calls, to read."""
    root = path_prefix(request)
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title="ssmsam: REST reference",
        redoc_js_url=f"{root}{AT}/redoc.standalone.js",
        redoc_favicon_url=f"{root}/favicon.ico",
        with_google_fonts=False,
    )


@reference.get(AT + "/{name}")
def file(name: str) -> FileResponse:
    """A script or style of these pages."""
    known = {path.name: path for path in REFERENCE_FILES.iterdir()}
    if name not in known:
        raise NotKnown("file of the reference", name)
    return FileResponse(known[name])
