"""OHIF as it comes with MONAI Label, told where its server is."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from monailabel.endpoints import ohif as stock
from monailabel.utils.others.generic import get_mime_type

from ssmsam.server.clients.ohif import below, index_with_script, no_archive_page, own_file
from ssmsam.server.routes.common import AnyUser, path_prefix, the_app
from ssmsam.service.errors import NotKnown

router = APIRouter(prefix="/ohif", include_in_schema=False)

FILES = Path(stock.__file__).resolve().parent / "static" / "ohif"

SERVER_COOKIE = "MONAILABEL_SERVER_URL"
"""Where OHIF's MONAI Label panel keeps the server's address. By itself it assumes port 8000."""


@router.get("/{path:path}")
def page(user: AnyUser, request: Request, path: str) -> Response:
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
    if the_app().datastore().files.remote:
        answer = HTMLResponse(index_with_script(FILES / "index.html", prefix))
    else:
        answer = HTMLResponse(no_archive_page(str(request.base_url)))
    server = quote(str(request.base_url), safe="")
    answer.headers["Set-Cookie"] = f"{SERVER_COOKIE}={server}; Path={prefix}/ohif; SameSite=Lax"
    answer.headers["Cache-Control"] = "no-cache"
    return answer
