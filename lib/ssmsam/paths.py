"""Folders that programs and the server use by default."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pooch

SERIES = "images"
"""The folder of downloaded series within that of a store: a cache. Everything beside it is the users' work."""


@dataclass(frozen=True, kw_only=True)
class CacheFolders:
    """Where a server or the programs keep what they computed or downloaded. A folder may be missing."""

    store: Path
    """The embedding store."""
    checkpoints: tuple[Path, ...]
    """Folders with task checkpoints, at any depth."""
    support: tuple[Path, ...] = ()
    """Support caches beside none of these."""
    dicom: Path
    """The local side of DICOMweb stores."""
    sessions: Path
    """Images that viewers sent for a while."""


def default_root() -> Path:
    """The embedding store's folder in the user's cache."""
    return Path(pooch.os_cache("ssmsam")) / "embeddings"


def default_store() -> Path:
    """Where embeddings go unless ``--conf store`` says otherwise: in ``SSMSAM_CACHE``, else in the user's cache."""
    named = os.environ.get("SSMSAM_CACHE")
    return Path(named).expanduser() / "embeddings" if named else default_root()


def default_support() -> Path:
    """Where programs keep the labelled slices of the task checkpoints that they wrote: beside the embedding store."""
    return default_store().parent / "support"


def default_dicom_folder() -> Path:
    """Where the local side of DICOMweb stores lives: not in the user's cache, because labels are work."""
    named = os.environ.get("MONAI_LABEL_DICOMWEB_CACHE_PATH", "").strip()
    return Path(named).expanduser() if named else platformdirs.user_data_path("ssmsam") / "dicomweb"


def default_cache_folders() -> CacheFolders:
    """Where everything cached lies unless the server was started with other folders."""
    sessions = os.environ.get("MONAI_LABEL_SESSION_PATH", "").strip()
    return CacheFolders(
        store=default_store(),
        checkpoints=(default_store().parent / "heads",),
        support=(default_support(),),
        dicom=default_dicom_folder(),
        sessions=Path(sessions) if sessions else Path.home() / ".cache" / "monailabel" / "sessions",
    )


def default_checkpoints(studies: str) -> Path:
    """Where a studies folder's or store's task checkpoints go: beside the embedding store, by its name's digest."""
    name = studies if "://" in studies else str(Path(studies).resolve())
    return default_store().parent / "heads" / hashlib.sha256(name.encode()).hexdigest()[:16]
