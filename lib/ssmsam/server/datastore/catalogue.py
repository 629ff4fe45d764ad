"""What a DICOM store holds, as it was told a moment ago, and the series of it that were downloaded."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from ssmsam.cache import Cache
from ssmsam.dicom.web import (
    DicomStore,
    Filters,
    SegmentationRecord,
    SeriesRecord,
    StoreRefused,
    StoreUnavailable,
    by_image,
)

logger = logging.getLogger(__name__)

FRESH_S = 10.0
"""How long a list is believed. Viewers ask for it every few seconds."""
PAUSE_S = 5.0
"""How long a store that failed is left alone."""
KNOWN_S = 60.0
"""How long a series that was in the list is believed to be in the store as it was. Every click asks for one."""
REMEMBERED = 100_000
"""SEG series whose references are remembered, a few hundred bytes each: a guess."""
ASK_AGAIN_S = 1.0
"""How often at most an unknown name makes us ask the store."""
READ_AGAIN_S = 60.0
"""After this long a SEG series that could not be read is asked for again. A guess."""
PATIENCE_S, FIRST_S = 5.0, 20.0
"""How long an answer is waited for where there is an older one, and where there is none. The store may take longer:
the answer is there for whoever asks next. Guesses."""
PARTIAL = ".partial-"
"""How folders begin that are still being written."""
LISTED = ".listed"
"""A file beside those of a series: how many the store listed."""
ABANDONED_S = 6 * 3600
"""After this long nobody is writing a partial folder any more: its process has ended."""
IN_USE_S = 600
"""A series that was asked for within this time is not removed: a request may still be reading it. One from the future
was asked for before the clock was set back."""
T = TypeVar("T")


class DicomCatalogue:
    """The images and segmentations of a store, from lists that are at most ``fresh_s`` seconds old.

    ``stored`` gives the SEGs of an image that were stored from here, the oldest first. While the store is down the last
    lists are used. Raises StoreUnavailable or StoreRefused when there are none.
    """

    def __init__(
        self,
        store: DicomStore,
        *,
        filters: Filters,
        stored: Callable[[str], Sequence[str]],
        fresh_s: float = FRESH_S,
    ) -> None:
        self._store, self._filters, self._stored = store, filters, stored
        self._images = _Remembered(self._ask_images, fresh_s)
        self._segmentations = _Remembered(self._ask_segmentations, fresh_s)
        self._read: Cache[tuple[str, int, int], list[SegmentationRecord]] = Cache(REMEMBERED)
        self._failed: Cache[tuple[str, int, int], float] = Cache(REMEMBERED)

    def images(self) -> Mapping[str, SeriesRecord]:
        """Every image series, by its UID."""
        return self._images.get()

    def find(self, series_uid: str) -> SeriesRecord | None:
        """One image series, None when the store does not have it."""
        known = self._images.get(max_age_s=KNOWN_S).get(series_uid)
        return known or self._images.get(max_age_s=ASK_AGAIN_S).get(series_uid)

    def segmentations(self) -> Mapping[str, list[SegmentationRecord]]:
        """The segmentations of each image series that has one, the newest first, by the image's UID."""
        return self._segmentations.get()

    def forget(self) -> None:
        """Ask again next time: something was stored."""
        self._images.forget()
        self._segmentations.forget()

    @property
    def trouble(self) -> str:
        """What went wrong when the store was asked last; empty when nothing did."""
        return self._images.trouble or self._segmentations.trouble

    def _ask_images(self) -> dict[str, SeriesRecord]:
        return {record.series_uid: record for record in self._store.series(self._filters)}

    def _ask_segmentations(self) -> dict[str, list[SegmentationRecord]]:
        studies: dict[str, list[SeriesRecord]] = {}
        for image in self.images().values():
            studies.setdefault(image.study_uid, []).append(image)
        listed = [record for record in self._store.series({"Modality": "SEG"}) if record.study_uid in studies]
        found = (one for record in listed for one in self._references(record, studies[record.study_uid]))
        return by_image(found, self._stored)

    def _references(self, record: SeriesRecord, images: list[SeriesRecord]) -> list[SegmentationRecord]:
        """What a SEG series is of, among the images of its study. It is read once: what was stored does not change."""
        key = (record.series_uid, record.instances, len(images))
        if time.monotonic() - (self._failed.get(key) or float("-inf")) < READ_AGAIN_S:
            return []
        try:
            return self._read.recalled(key, lambda: self._store.segmentations(record, images))
        except (StoreRefused, StoreUnavailable) as error:  # one odd object must not hide the others
            logger.warning("SEG series %s is left out: %s", record.series_uid, error)
            self._failed.put(key, time.monotonic())
            return []


class _Remembered(Generic[T]):
    """The last answer to a question, asked again when it is too old: by one thread, for which nobody waits for long."""

    def __init__(self, ask: Callable[[], dict[str, T]], fresh_s: float) -> None:
        self._ask, self._fresh_s = ask, fresh_s
        self._lock = threading.Lock()
        self._asked = self._failed = float("-inf")
        self._asking: threading.Thread | None = None
        self._began = 0.0
        self._forgotten = 0
        self._error: StoreUnavailable | StoreRefused | None = None
        self._is_known = False
        self.last: dict[str, T] = {}

    @property
    def trouble(self) -> str:
        return str(self._error or "")

    def forget(self) -> None:
        """Believe neither the last answer nor one that is under way."""
        with self._lock:
            self._asked = self._failed = float("-inf")
            self._forgotten += 1
            self._asking = None

    def get(self, *, max_age_s: float | None = None) -> dict[str, T]:
        with self._lock:
            now = time.monotonic()
            fresh_s = self._fresh_s if max_age_s is None else max_age_s
            if self._asking is None and now - self._asked >= fresh_s and now - self._failed >= PAUSE_S:
                self._asking = threading.Thread(target=self._try, args=(now, self._forgotten), daemon=True)
                self._asking.start()
                self._began = now
            asking = self._asking
        if asking is not None:
            asking.join(max(0.0, self._began + (PATIENCE_S if self._is_known else FIRST_S) - time.monotonic()))
        with self._lock:
            if self._is_known:
                return self.last
            if self._error:
                raise type(self._error)(str(self._error))
        raise StoreUnavailable("the archive was not heard to its end yet: try again in a moment.")

    def _try(self, now: float, forgotten: int) -> None:
        error: StoreUnavailable | StoreRefused | None = None
        try:
            found = self._ask()
        except (StoreUnavailable, StoreRefused) as failed:
            error = failed
        except Exception as failed:  # whatever it sent: it must not stop what asks for it
            logger.exception("The answer of the archive cannot be used")
            error = StoreRefused(f"the archive sent an answer that cannot be used ({type(failed).__name__}).")
        with self._lock:
            if forgotten != self._forgotten:
                return
            self._asking = None
            if error:
                if self._error is None:
                    logger.warning("%s", error)
                self._error, self._failed = error, time.monotonic()
                return
            if self._error:
                logger.info("The DICOMweb store answers again")
            self.last, self._error, self._is_known, self._asked = found, None, True, now


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
            known = sorted(
                (entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir()), entry)
                for entry in self._folder.iterdir()
                if entry.is_dir() and not entry.name.startswith(".")
            )
            too_much = sum(size for _, size, _ in known) - self._quota_bytes
            for used, size, folder in known:
                if too_much <= 0 or abs(time.time() - used) < IN_USE_S:
                    return
                logger.info("Removing series %s from the cache to make room", folder.name)
                with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=self._folder) as scratch:
                    folder.rename(Path(scratch) / "old")  # in one step: nobody finds half a series
                too_much -= size


def _listed(folder: Path) -> int:
    """How many files the store listed when the series was fetched, 0 where that is not known."""
    try:
        return int((folder / LISTED).read_text())
    except (FileNotFoundError, ValueError):
        return 0
