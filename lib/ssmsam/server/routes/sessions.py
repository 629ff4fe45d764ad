"""Sessions: images that a viewer sends for a while, outside the datastore."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path, PurePath
from typing import Annotated, Any

from fastapi import APIRouter, File, HTTPException, UploadFile
from monailabel.endpoints import session as stock
from monailabel.utils.sessions import Sessions

from ssmsam.server.errors import InvalidRequest, NotKnown
from ssmsam.server.identifiers import is_session_id, safe_name
from ssmsam.server.routes.common import AnyUser, Scratch, the_app

router = APIRouter(prefix="/session", tags=["Session"])


@router.get("/{session_id}", summary="Whether a session exists")
def get_session(user: AnyUser, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    _require(session_id)
    return stock.get_session(session_id, update_ts, image)


@router.put("/", summary="Send an image for a while")
def create_session(
    user: AnyUser,
    scratch: Scratch,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> dict[str, Any]:
    """One file is the image; several files, or an archive with ``uncompress``, are a folder of DICOM files."""
    folder = scratch / "images"
    folder.mkdir()
    received = [_receive(file, folder) for file in files]
    image = received[0] if len(received) == 1 else folder
    if uncompress:
        image = _unpack(received[0], scratch / "unpacked")
    sessions = _sessions()
    session_id, session = sessions.add_session(str(image), expiry)
    app = the_app()
    app.background.prefer(app.images.from_session(sessions, session_id))
    return {"session_id": session_id, "session_info": session.to_json()}


@router.delete("/{session_id}", summary="End a session")
def remove_session(user: AnyUser, session_id: str) -> Any:
    _require(session_id)
    return stock.remove_session(session_id)


def _sessions() -> Sessions:
    sessions = the_app().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are switched off on this server (MONAI_LABEL_SESSIONS)")
    return sessions


def _require(session_id: str) -> None:
    """Anything else than one of our ids could lead to another folder."""
    _sessions()
    if not is_session_id(session_id):
        raise NotKnown("session", session_id)


def _receive(file: UploadFile, folder: Path) -> Path:
    name = PurePath((file.filename or "image.nii.gz").replace("\\", "/")).name
    path = folder / safe_name(name, what="a file's name")
    with path.open("wb") as copy:
        shutil.copyfileobj(file.file, copy)
    return path


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack plain files only: an archive may hold links and names that lead out of the folder."""
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)  # drops "..", absolute paths and links by itself
        else:
            with tarfile.open(archive) as packed_tar:
                packed_tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise InvalidRequest("the archive cannot be unpacked: send a .zip or .tar(.gz) with plain files") from error
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 else folder
