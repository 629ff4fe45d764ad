"""Sessions: images that a viewer sends for a while, outside the datastore."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Annotated, Any

from fastapi import APIRouter, File, HTTPException, UploadFile
from monailabel.endpoints import session as stock
from monailabel.utils.sessions import Sessions

from ssmsam.server.app import ServerApp
from ssmsam.server.routes.common import AnyUser, App, Scratch
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.identifiers import is_session_id, safe_name

router = APIRouter(prefix="/session", tags=["Session"])

ALWAYS_UNPACKED = 256 * 2**20
MOST_INFLATION = 20
"""An archive may become so many bytes, or so many times its own size: images shrink to a third, empty ones further."""
MOST_FILES = 20_000
"""In one archive; the longest series have some thousand images."""


@router.get("/{session_id}", summary="Whether a session exists")
def get_session(app: App, user: AnyUser, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    _require(app, session_id)
    if image and session_image(_sessions(app), session_id).is_dir():
        raise InvalidRequest("the image is a folder of DICOM files, which cannot be sent back as one file")
    return stock.get_session(session_id, update_ts, image)


@router.put("/", summary="Send an image for a while")
def create_session(
    app: App,
    user: AnyUser,
    scratch: Scratch,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> dict[str, Any]:
    """One file is the image; several files, or an archive with ``uncompress``, are a folder of DICOM files."""
    folder = scratch / "images"
    folder.mkdir()
    received = []
    for file in files:
        sent_name = PurePath((file.filename or "image.nii.gz").replace("\\", "/")).name
        received.append(folder / safe_name(sent_name, what="a file's name"))
        with received[-1].open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
    image = received[0] if len(received) == 1 else folder
    if uncompress:
        image = _unpack(received[0], scratch / "unpacked")
    sessions = _sessions(app)
    session_id, session = sessions.add_session(str(image), expiry)
    app.background.prefer(app.images.from_session(session_image(sessions, session_id)))
    return {"session_id": session_id, "session_info": session.to_json()}


@router.delete("/{session_id}", summary="End a session")
def remove_session(app: App, user: AnyUser, session_id: str) -> Any:
    _require(app, session_id)
    return stock.remove_session(session_id)


def _sessions(app: ServerApp) -> Sessions:
    sessions = app.sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are switched off on this server (MONAI_LABEL_SESSIONS)")
    return sessions


def _require(app: ServerApp, session_id: str) -> None:
    """Anything else than one of our ids could lead to another folder."""
    _sessions(app)
    if not is_session_id(session_id):
        raise NotKnown("session", session_id)


def session_image(sessions: Sessions | None, session_id: str) -> Path:
    """The file or folder that was sent. Raises NotKnown for a session that has expired, or whose image is gone."""
    session = sessions.get_session(session_id) if sessions is not None and is_session_id(session_id) else None
    if session is None or not Path(session.image).exists():
        raise NotKnown("session", session_id, step="It may have expired: send the image again")
    return Path(session.image)


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack plain files only: an archive may hold links and names that lead out of the folder."""
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                _expect_reasonable([one.file_size for one in packed.infolist()], archive)
                packed.extractall(folder)  # drops "..", absolute paths and links by itself
        else:
            with tarfile.open(archive) as packed_tar:
                _expect_reasonable((one.size for one in packed_tar), archive)
                packed_tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest("the archive cannot be unpacked: send a .zip or .tar(.gz) with plain files") from error
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 else folder


def _expect_reasonable(sizes: Iterable[int], archive: Path) -> None:
    """Refuse what would fill the disk. Archives say how large their files become, and are held to it when they are
    unpacked. Raises InvalidRequest."""
    room = max(ALWAYS_UNPACKED, MOST_INFLATION * archive.stat().st_size)
    total = 0
    for number, size in enumerate(sizes, 1):
        total += size
        if total > room or number > MOST_FILES:
            raise InvalidRequest(
                f"the archive would become more than {room // 10**6} MB or {MOST_FILES} files when it is unpacked: "
                "send the image's files only"
            )
