"""The reference of all REST calls, as pages that load nothing from elsewhere: hospitals' servers have no internet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from ssmsam.server.routes.common import path_prefix
from ssmsam.service.errors import NotKnown

router = APIRouter(include_in_schema=False)

FILES = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI and ReDoc, as that package brings them."""
AT = "/reference-files"


@router.get("/")
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


@router.get("/docs")
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


@router.get(AT + "/{name}")
def file(name: str) -> FileResponse:
    """A script or style of these pages."""
    known = {path.name: path for path in FILES.iterdir()}
    if name not in known:
        raise NotKnown("file of the reference", name)
    return FileResponse(known[name])
