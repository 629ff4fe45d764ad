"""The DICOMweb server behind ``/proxy/dicom``: with the query string, a timeout, and without blocking anybody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Annotated
from urllib.parse import quote, unquote

import requests
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from monailabel.config import settings

from ssmsam.dicom.web import StoreSession
from ssmsam.server.datastore.access import is_dicomweb, store_access
from ssmsam.server.routes.common import AnyUser, App, note_opened
from ssmsam.service.errors import InvalidRequest, NotKnown

router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)

PIECE = 1 << 20
SERIES_METADATA = re.compile(r"studies/[\d.]+/series/([\d.]+)/metadata$")


async def _body(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


@router.api_route("/{path:path}", methods=["GET", "POST"])
def forward(app: App, user: AnyUser, request: Request, path: str, body: Body) -> Response:
    """What begins with ``wado/``, ``qido/`` or ``stow/`` has the prefix of that service on the DICOMweb server."""
    service, _, rest = path.partition("/")
    if service not in ("wado", "qido", "stow"):
        return _forward(request, None, path, body)
    if service == "qido" and rest.endswith("metadata"):  # some viewers ask for metadata among their queries
        service = "wado"
    # a viewer asks for a series' metadata when it opens it, and only then
    if service == "wado" and (series := SERIES_METADATA.search(rest)):
        files = app.datastore().files
        if files.remote and files.knows(series[1]):
            note_opened(app, series[1], request)
    return _forward(request, getattr(settings, f"MONAI_LABEL_{service.upper()}_PREFIX"), rest, body)


def _forward(request: Request, prefix: str | None, path: str, body: bytes) -> Response:
    # what the viewer wants and sends; its cookies and tokens are for this server, not for the other
    headers = {name: request.headers[name] for name in ("Accept", "Content-Type") if name in request.headers}
    try:
        url, query = _url(prefix, path), request.url.query  # as it came: Orthanc does not read an encoded asterisk
        answer = _session(settings.MONAI_LABEL_STUDIES).request(
            request.method,
            f"{url}?{query}" if query else url,
            headers=headers,
            data=body or None,
            stream=True,
            allow_redirects=False,  # it must not be sent to other hosts
        )
    except requests.Timeout as error:
        raise HTTPException(504, "the DICOMweb server did not answer in time") from error
    except requests.RequestException as error:
        raise HTTPException(502, "the DICOMweb server cannot be reached") from error
    kept = {name: answer.headers[name] for name in ("ETag", "Last-Modified", "Warning") if name in answer.headers}
    return StreamingResponse(
        _pieces(answer), answer.status_code, headers=kept, media_type=answer.headers.get("Content-Type")
    )


def _url(prefix: str | None, path: str) -> str:
    """The address on the DICOMweb server. Nothing outside its DICOMweb root can be reached."""
    if not is_dicomweb(settings.MONAI_LABEL_STUDIES):
        raise NotKnown("DICOMweb server", "proxy", step="The studies of this server are a folder")
    if any(part in (".", "..") for part in unquote(path).replace("\\", "/").split("/")):
        raise InvalidRequest("the path must not contain '.' or '..'")
    parts = [
        settings.MONAI_LABEL_STUDIES.rstrip("/"),
        (prefix or "").strip("/"),
        quote(path.lstrip("/"), safe="/:,;=@&+$!*()~"),
    ]
    return "/".join(part for part in parts if part)


@cache
def _session(url: str) -> requests.Session:
    """One session for all: connections stay open, and the login is the datastore's own."""
    return StoreSession(replace(store_access(url), patient=False))  # who waits in vain asks again by themselves


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    with answer:
        yield from answer.iter_content(PIECE)
