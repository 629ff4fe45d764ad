"""Annotations on disk: one folder per image; one index, and per revision a file of masks and one of what it says."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock

from ssmsam.annotation.annotations import Annotations, Update
from ssmsam.annotation.files import CorruptAnnotations, UnknownSchema, write_json
from ssmsam.annotation.recovery import INDEX, has_revisions, recover, revision_file
from ssmsam.annotation.serialisation import grid_of, one_error, read_index, read_revision, write_index, write_revision
from ssmsam.annotation.support import SupportSet

logger = logging.getLogger(__name__)

Stamp: TypeAlias = tuple[int, int, int]
"""Inode, time and size of a file, which is never changed in place: a new stamp is a new content."""


def image_folder(root: Path, image: str) -> Path:
    """Where an image's files are. Ids are whatever clients send, so they never become part of a path; damaged records
    may even hold half a character."""
    return root / hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Overview:
    """What is known of an image, without its masks."""

    annotated: frozenset[str] = frozenset()
    """Labels that have an annotated slice."""
    complete: frozenset[str] = frozenset()
    """Labels that were declared finished on the whole volume."""
    reopened: bool = False
    """Whether a label was finished once and is not now."""
    revision: int = 0
    """The number of the last revision."""

    @property
    def finished(self) -> bool:
        """Whether something is annotated, and all of that is complete."""
        return bool(self.annotated) and self.annotated <= self.complete


@dataclass(frozen=True)
class AnnotationStore:
    """The annotations of all images under ``root``. Several processes may submit at once.

    A damaged index is rebuilt from the files of its revisions when it is met, and the old one is kept beside it.
    """

    root: Path
    troubles: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Index file -> why it cannot be used, for those that cannot."""
    _overviews: dict[str, tuple[Stamp, str, Overview]] = field(default_factory=dict, compare=False, repr=False)
    """Index file -> its stamp, image and overview."""
    _support: list[tuple[dict[str, Stamp], SupportSet]] = field(default_factory=list, compare=False, repr=False)
    """The last support set, with the stamps of all files that it was read from."""
    _lost: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    """Whether a folder without an index holds revisions."""

    def load(self, image: str) -> Annotations | None:
        """What is known of an image; None when nothing is.

        Raises :class:`~ssmsam.annotation.files.CorruptAnnotations` for what another version wrote.
        """
        return self._load(image_folder(self.root, image), lock=True)

    def overview(self, image: str) -> Overview:
        """Which labels of an image are annotated and which are finished."""
        return self.overviews().get(image, Overview())

    def overviews(self) -> dict[str, Overview]:
        """The same for every image that has annotations. Fast: it is asked for every few seconds.

        What cannot be read and not be rebuilt is left out, and is one of the :attr:`troubles`.
        """
        found = {}
        stamps = self._stamps()
        for path in set(self._overviews) - set(stamps):  # removed with their images
            self._overviews.pop(path, None)
        for path, stamp in stamps.items():
            if path not in self._overviews or self._overviews[path][0] != stamp:
                try:
                    index = self._index(Path(path).parent, lock=True)
                except (CorruptAnnotations, OSError) as error:
                    if path not in self.troubles:
                        logger.error("%s is left out: %s", path, error)
                    self.troubles[path] = str(error)
                    continue
                self.troubles.pop(path, None)
                if index is None:
                    continue
                self._overviews[path] = stamp, index["image"], _overview(index)
            _, image, overview = self._overviews[path]
            found[image] = overview
        return found

    def merge(self, image: str, update: Update) -> Annotations:
        """Add a submission to what is known of an image, and return all of it.

        Raises :class:`~ssmsam.annotation.truth.InvalidSubmission` when the update is on another grid than the stored
        annotations, ``CorruptAnnotations``, and OSError where the disk is full; nothing is changed then.
        """
        folder = image_folder(self.root, image)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            known = self._load(folder, lock=False) or Annotations(update.grid)
            merged = known.merge(update)
            if merged is not known:
                folder.mkdir(parents=True, exist_ok=True)  # a damaged one was put aside
                old = read_index(folder / INDEX)["revisions"] if known.revisions else []
                new = [write_revision(folder, revision) for revision in merged.revisions[len(old) :]]
                for record in (*old, *new):  # what the index says, once more: it can be rebuilt from these
                    own = revision_file(folder, record["number"])
                    if record in new or not own.exists():
                        write_json(own, write_index(image, merged.grid, [record], None))
                write_json(folder / INDEX, write_index(image, merged.grid, [*old, *new], merged))
            return merged

    def images(self) -> list[str]:
        """The images that have annotations, sorted."""
        return sorted(self.overviews())

    def support(self) -> SupportSet:
        """Every annotated slice of every image. The masks are read again only when something was submitted."""
        stamps = self._stamps()
        if not self._support or self._support[-1][0] != stamps:
            known = {image: self._load_or_say(image) for image in self.images()}
            found = SupportSet.of({image: one for image, one in known.items() if one is not None})
            self._support[:] = [(stamps, found)]
        return self._support[-1][1]

    def _load_or_say(self, image: str) -> Annotations | None:
        try:
            return self.load(image)
        except (CorruptAnnotations, OSError) as error:
            logger.error("Nothing is learned from %s: %s", image, error)
            return None

    def _load(self, folder: Path, *, lock: bool) -> Annotations | None:
        try:
            index = self._index(folder, lock=lock)
            return None if index is None else _annotations(folder, index)
        except UnknownSchema:
            raise
        except CorruptAnnotations as error:  # masks are damaged
            index = self._recovered(folder, error, lock=lock)
            return None if index is None else _annotations(folder, index)

    def _index(self, folder: Path, *, lock: bool) -> dict[str, Any] | None:
        """A sound index; None where there is none."""
        path = folder / INDEX
        try:
            if path.exists():
                return _sound_index(path)
            if not has_revisions(folder):
                return None
            raise CorruptAnnotations(f"the annotation file {path} is missing")
        except UnknownSchema:
            raise
        except CorruptAnnotations as error:
            return self._recovered(folder, error, lock=lock)

    def _recovered(self, folder: Path, error: CorruptAnnotations, *, lock: bool) -> dict[str, Any] | None:
        with FileLock(folder / "lock") if lock else nullcontext():
            if lock:  # another thread or process may have done it meanwhile
                with suppress(CorruptAnnotations, OSError):
                    index = _sound_index(folder / INDEX)
                    _annotations(folder, index)
                    return index
            return recover(folder, error)

    def _stamps(self) -> dict[str, Stamp]:
        """The index files that there are, and those that there should be."""
        found = {}
        for folder in os.scandir(self.root) if self.root.exists() else ():
            if not _FOLDER.fullmatch(folder.name):
                continue
            path = f"{folder.path}/{INDEX}"
            try:
                status = os.stat(path)
                found[path] = status.st_ino, status.st_mtime_ns, status.st_size
            except (FileNotFoundError, NotADirectoryError):  # only work was noted so far, or it is lost
                if folder.path not in self._lost:
                    self._lost[folder.path] = has_revisions(Path(folder.path))
                if self._lost[folder.path]:
                    found[path] = 0, 0, 0
            except OSError as error:
                self.troubles[path] = str(error)
        return found


_FOLDER = re.compile("[0-9a-f]{32}")


def _sound_index(path: Path) -> dict[str, Any]:
    index = read_index(path)
    with one_error(path):
        _overview(index)
    return index


def _annotations(folder: Path, index: dict[str, Any]) -> Annotations:
    grid = grid_of(index)
    return Annotations(grid, tuple(read_revision(folder, grid, written) for written in index["revisions"]))


def _overview(index: dict[str, Any]) -> Overview:
    states = index["states"].items()
    annotated = frozenset(label for label, state in states if state["annotated"])
    complete = frozenset(label for label, state in states if state["complete"])
    revision = index["revisions"][-1]["number"] if index["revisions"] else 0
    return Overview(annotated, complete, bool(index.get("reopened", False)), revision)
