"""Downloaded series on disk, within a limit of bytes."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

PARTIAL = ".partial-"
"""How folders begin that are still being written."""

LISTED = ".listed"
"""A file beside those of a series: how many the store listed."""

ABANDONED_S = 6 * 3600
"""After this long nobody is writing a partial folder any more: its process has ended."""

IN_USE_S = 600
"""A series that was asked for within this time is not removed: a request may still be reading it. One from the future
was asked for before the clock was set back."""


class SeriesCache:
    """One folder for each series. A series is there whole or not at all. Safe for threads and several processes.

    ``quota_bytes`` is kept by removing the series that were not asked for for longest. Only what lies in ``folder``
    is counted and removed.
    """

    def __init__(self, folder: Path, *, quota_bytes: int) -> None:
        self._folder, self._quota_bytes = folder, quota_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{PARTIAL}*"):
            if abs(time.time() - left.stat().st_mtime) > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)

    def find(self, name: str, *, files: int = 0) -> Path | None:
        """The folder of a series if it is here as it was when the store listed this number of files (0: any)."""
        folder = self._folder / name
        try:
            count = sum(not entry.name.startswith(".") for entry in os.scandir(folder))
            if count == 0 or (files and files not in (count, _listed(folder))):
                return None
            os.utime(folder)
        except FileNotFoundError:
            return None
        return folder

    def add(self, name: str, fill: Callable[[Path], None], *, files: int = 0) -> Path:
        """The folder of a series, filled by ``fill``. A former one of the same name gives way.

        ``files`` is the number that the store listed, which may not be how many there are.
        """
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self._folder) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            fill(new)
            if files:
                (new / LISTED).write_text(str(files))
            with self._lock:
                if (self._folder / name).exists():
                    (self._folder / name).rename(old)
                new.rename(self._folder / name)
        self._make_room()
        return self._folder / name

    def _make_room(self) -> None:
        with self._lock:
            known = sorted((_used(entry), _bytes(entry), entry) for entry in self._series())
            too_much = sum(size for _, size, _ in known) - self._quota_bytes
            for used, size, folder in known:
                if too_much <= 0 or abs(time.time() - used) < IN_USE_S:
                    return
                logger.info("Removing series %s from the cache to make room", folder.name)
                with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self._folder) as scratch:
                    folder.rename(Path(scratch) / "old")  # in one step: nobody finds half a series
                too_much -= size

    def _series(self) -> list[Path]:
        return [entry for entry in self._folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _listed(folder: Path) -> int:
    """How many files the store listed when the series was fetched, 0 where that is not known."""
    try:
        return int((folder / LISTED).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _used(folder: Path) -> float:
    return folder.stat().st_mtime


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
