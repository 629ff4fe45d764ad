"""What is kept on disk of patients' images only to save time, and how it is removed. Annotations are no cache."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmsam.fewshot.checkpoint_registry import SUPPORT
from ssmsam.paths import SERIES, CacheFolders

logger = logging.getLogger(__name__)

_LEFT_BEHIND_S = 24 * 3600
"""Temporary folders that were not touched for this long belong to a process that has ended: a guess."""


@dataclass(frozen=True)
class CachePlace:
    """One kind of cached patient data: ``paths`` are the files and folders that go."""

    name: str
    what: str
    paths: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """With how many files there are now, and their bytes."""
        sizes = [_size(file) for path in self.paths for file in _files(path)]
        return {"name": self.name, "what": self.what, "files": len(sizes), "bytes": sum(sizes)}


def cached(folders: CacheFolders) -> list[CachePlace]:
    """Everything that a purge would remove. Annotations, labels, task checkpoints and studies are not among it."""
    store = folders.store
    return [
        CachePlace(
            "embeddings",
            "what the encoder made of slices, and which files these were of",
            tuple(_listed(store, "??", "removed-*", "catalogue")),
        ),
        CachePlace(
            "support",
            "annotated slices as task checkpoints read them; made again of the annotations",
            (
                *(file for folder in folders.checkpoints for file in _listed(folder, f"**/{SUPPORT}/*")),
                *(file for folder in folders.support for file in _listed(folder, "*")),
            ),
        ),
        CachePlace("series", "series downloaded by DICOMweb", tuple(_listed(folders.dicom, f"*/{SERIES}/*"))),
        CachePlace("sessions", "images that viewers sent for a while", tuple(_listed(folders.sessions, "*"))),
        CachePlace("temporary", "masks and images of processes that have ended", tuple(_left_behind())),
    ]


def purge(places: Sequence[CachePlace]) -> list[dict[str, Any]]:
    """Remove all of it; what was removed of each. A running server makes again what it needs.

    What cannot be removed is said in the log and stays.
    """
    told = []
    for place in places:
        before = place.as_json()
        for path in place.paths:
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("cached data could not be removed: %s", error)
        left = place.as_json()
        told.append({**before, "files": before["files"] - left["files"], "bytes": before["bytes"] - left["bytes"]})
    return told


def _listed(folder: Path, *patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(folder.glob(pattern))


def _left_behind() -> Iterator[Path]:
    for path in _listed(Path(tempfile.gettempdir()), "ssmsam-*"):
        try:
            if abs(time.time() - path.stat().st_mtime) > _LEFT_BEHIND_S:
                yield path
        except OSError:
            continue


def _files(path: Path) -> list[Path]:
    if path.is_dir() and not path.is_symlink():
        return [file for file in path.rglob("*") if file.is_file()]
    return [path] if path.exists() else []


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
