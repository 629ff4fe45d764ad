"""For the one who runs the server: its log, the graphics card, and what is kept of patients' images to save time."""

from __future__ import annotations

import subprocess
from collections import deque
from html import escape
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from monailabel.config import settings

from ssmsam.server.routes.common import Admin, App
from ssmsam.service.errors import NotKnown
from ssmsam.service.patient_cache import cached, purge

router = APIRouter()

MOST_LINES = 100_000
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ssmsam: log</title>{refresh}
<style>pre {{ white-space: pre-wrap; font: 13px monospace; }}</style></head>
<body><pre>{text}</pre></body></html>"""


@router.get("/logs/", tags=["Others"], summary="The last lines of the server's log", response_class=HTMLResponse)
def log(
    user: Admin,
    lines: Annotated[int, Query(ge=0, le=MOST_LINES, description="how many of the last ones; 0 for all")] = 300,
    html: Annotated[bool, Query(description="a page to look at")] = True,
    text: Annotated[bool, Query(description="plain text in any case")] = False,
    refresh: Annotated[int, Query(ge=0, le=3600, description="load the page again after so many seconds")] = 0,
) -> Response:
    """As a page, or as text. The page loads nothing from elsewhere."""
    file = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    try:
        with file.open(errors="replace") as written:
            found = "".join(deque(written, lines or MOST_LINES))
    except OSError as error:
        raise NotKnown("log", file.name, step="The server writes to where it was started from") from error
    if text or not html:
        return PlainTextResponse(found)
    again = f'<meta http-equiv="refresh" content="{max(refresh, 3)}">' if refresh else ""
    return HTMLResponse(_PAGE.format(refresh=again, text=escape(found)))


@router.get("/logs/gpu", tags=["Others"], summary="What nvidia-smi says")
def gpu(user: Admin) -> PlainTextResponse:
    """Its output as text; 404 where it is not installed."""
    try:
        said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError as error:
        raise HTTPException(404, "this machine has no nvidia-smi") from error
    return PlainTextResponse(said.stdout)


@router.get("/cache", tags=["Cache"], summary="Cached patient data: what there is, and what DELETE would remove")
def cache(app: App, user: Admin) -> dict[str, Any]:
    return {"places": [place.as_json() for place in cached(app.cache_folders())]}


@router.delete(
    "/cache", tags=["Cache"], summary="Remove all cached patient data; annotations, labels and task checkpoints stay"
)
def remove(app: App, user: Admin) -> dict[str, Any]:
    """Embeddings, support caches, downloaded series and sessions on disk. What is needed is made again, which takes
    time. What is in the memory of a running server goes when it ends."""
    told = purge(cached(app.cache_folders()))
    app.answers.clear()
    return {"removed": told}
