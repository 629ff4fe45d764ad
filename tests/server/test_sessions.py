"""Images that viewers send for a while."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from monailabel.utils.sessions import Sessions
from plain_files import PlainFiles

from ssmsam.embeddings.embedder import Embedder
from ssmsam.server.routes.sessions import session_image
from ssmsam.service.errors import NotKnown
from ssmsam.service.images import Images


def test_only_our_sessions_are_images(write: Callable[..., Path], embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(2):
        write(folder / f"case{number}.nii.gz", seed=number)
    images = Images(files=PlainFiles(folder), embedder=embedder, memory_bytes=10**9)
    sessions = Sessions(str(tmp_path / "sessions"))
    sent = tmp_path / "sent.nii.gz"
    sent.write_bytes((folder / "case0.nii.gz").read_bytes())
    session, _ = sessions.add_session(str(sent))
    assert images.open(images.from_session(session_image(sessions, session))).volume.shape == (6, 20, 24)
    forged = tmp_path / "sessions" / "forged"
    forged.mkdir()
    (forged / "meta.info").write_text('{"image": "' + str(folder / "case1.nii.gz") + '"}')
    for name in ("forged", "../sessions/forged", "", os.sep, str(forged), session.upper() + "x"):
        with pytest.raises(NotKnown, match="session"):
            session_image(sessions, name)
    with pytest.raises(NotKnown):
        session_image(None, session)
