"""Annotations on disk: one folder per image; one index, and per revision a file of masks and one of what it says."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, StringConstraints

from ssmsam.annotation.annotations import (
    Annotations,
    SliceAnnotation,
    SliceKey,
    Source,
    SupportSet,
    SupportSlice,
    Update,
)
from ssmsam.cache import Cache
from ssmsam.files import put_aside, write_bytes
from ssmsam.ops import PackedMask
from ssmsam.volume.volume import Grid


class CorruptAnnotations(ValueError):
    """A stored file is damaged or missing. The message names it and says what to do."""


class UnknownSchema(CorruptAnnotations):
    """A stored file is whole, and of another version."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, with the sha256 of its content inside."""
    text = json.dumps(content, sort_keys=True)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), **content}
    write_bytes(path, json.dumps(sealed, indent=1, sort_keys=True).encode())


def read_json(path: Path, *, schema: int) -> dict[str, Any]:
    """What :func:`write_json` wrote. Raises :class:`CorruptAnnotations`, also for another ``schema``."""
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("sha256")
        text = json.dumps(content, sort_keys=True)
    except FileNotFoundError:
        raise _corrupt(path, "is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _corrupt(path, "is not the JSON that was written") from None
    if hashlib.sha256(text.encode()).hexdigest() != seal:
        raise _corrupt(path, "was changed from outside")
    if content.get("schema") != schema:
        raise UnknownSchema(
            f"{path} has schema {content.get('schema')!r}, and this version reads {schema}: "
            "use the version that wrote it"
        )
    return content


def write_masks(path: Path, masks: Sequence[PackedMask]) -> str:
    """Write masks as one compressed .npz; the file's sha256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"mask{n}": np.frombuffer(mask.bits, np.uint8) for n, mask in enumerate(masks)})
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_masks(path: Path, shapes: tuple[tuple[int, int], ...], *, sha256: str) -> list[PackedMask]:
    """The masks that :func:`write_masks` wrote. Raises :class:`CorruptAnnotations` when the file is another one."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):  # all but the first: no such name
        raise _corrupt(path, "is missing") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _corrupt(path, "is damaged (its sha256 is another one)")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            masks = [PackedMask(shape, arrays[f"mask{n}"].tobytes()) for n, shape in enumerate(shapes)]
        if any(len(mask.bits) != -(-mask.shape[0] * mask.shape[1] // 8) for mask in masks):
            raise ValueError("a mask of another shape")
        return masks
    except Exception:  # zip and numpy raise what they like for a damaged file
        raise _corrupt(path, "does not hold the masks that belong to it") from None


def _corrupt(path: Path, what: str) -> CorruptAnnotations:
    return CorruptAnnotations(f"the annotation file {path} {what}.")


SCHEMA = 1


MOST_VOXELS = 2**32
"""Of a grid: more than any image that can be annotated here has."""


@contextmanager
def one_error(path: Path) -> Iterator[None]:
    """Whatever is raised inside because the content of a file is not what was written is ``CorruptAnnotations``."""
    try:
        yield
    except (CorruptAnnotations, OSError):
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise CorruptAnnotations(f"{path} does not hold annotations ({why})") from error


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
    by_people: bool = False
    """Whether anybody submitted something, rather than that a label was brought along."""

    @property
    def finished(self) -> bool:
        """Whether something is annotated, and all of that is complete."""
        return bool(self.annotated) and self.annotated <= self.complete


class Record(BaseModel):
    """A part of a stored file. Keys that this version does not know stay as they are."""

    model_config = ConfigDict(extra="allow")

    def written(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


MaskFile = Annotated[StrictStr, StringConstraints(pattern=r"^[\w-]+\.npz$")]


class EntryRecord(Record):
    """One annotated slice of a revision, without its mask."""

    label: StrictStr
    axis: StrictInt
    index: StrictInt
    shape: tuple[StrictInt, StrictInt]
    source: Source
    client: str
    when: str
    partly: StrictBool
    """Whether the mask of what is known follows the mask of the slice."""


SETS = ("predicted", "complete", "labels", "withdrawn", "reopened", "undoes")
"""What an :class:`Update` holds as sets, and files as sorted lists."""


class RevisionRecord(Record):
    """What a revision says, beside the file of its masks."""

    number: Annotated[StrictInt, Field(gt=0)]
    client: str
    when: str
    notes: tuple[str, ...]
    masks: MaskFile
    sha256: StrictStr
    entries: tuple[EntryRecord, ...]
    predicted: tuple[SliceKey, ...]
    complete: tuple[StrictStr, ...]
    labels: tuple[StrictStr, ...]
    withdrawn: tuple[SliceKey, ...] = ()
    reopened: tuple[StrictStr, ...] = ()
    undoes: tuple[StrictInt, ...] = ()

    @classmethod
    def write(cls, folder: Path, update: Update) -> RevisionRecord:
        """Write the masks of a revision; the record of it."""
        masks, entries = [], []
        for key, entry in sorted(update.entries.items()):
            masks += [entry.mask] if entry.known is None else [entry.mask, entry.known]
            entries.append(
                EntryRecord(
                    **key._asdict(),
                    shape=entry.mask.shape,
                    source=entry.source,
                    client=entry.client,
                    when=entry.when,
                    partly=entry.known is not None,
                )
            )
        name = f"revision-{update.number:06d}.npz"
        return cls(
            number=update.number,
            client=update.client,
            when=update.when,
            notes=update.notes,
            masks=name,
            sha256=write_masks(folder / name, masks),
            entries=tuple(entries),
            **{name: tuple(sorted(getattr(update, name))) for name in SETS},
        )

    def read(self, folder: Path, grid: Grid) -> Update:
        """The revision with its masks. Raises ``CorruptAnnotations``."""
        with one_error(folder / self.masks):
            shapes = tuple(entry.shape for entry in self.entries for _ in range(1 + entry.partly))
            masks = _recalled_masks(folder / self.masks, shapes, self.sha256) if shapes else []
            return self.update(grid, iter(masks))

    def update(self, grid: Grid, masks: Iterator[PackedMask]) -> Update:
        """What the revision says. Where ``masks`` end its slices are empty, which is enough to check it."""
        entries = {}
        for entry in self.entries:
            blank = PackedMask(entry.shape, b"")
            mask, known = next(masks, blank), next(masks, blank) if entry.partly else None
            key = SliceKey(entry.label, entry.axis, entry.index)
            entries[key] = SliceAnnotation(mask, entry.source, entry.client, entry.when, known)
        sets = {name: frozenset(getattr(self, name)) for name in SETS}
        return Update(grid, entries, client=self.client, when=self.when, notes=self.notes, number=self.number, **sets)


class GridRecord(Record):
    """The grid of an image."""

    shape: tuple[StrictInt, StrictInt, StrictInt]
    affine: list[list[float]]


class StateRecord(Record):
    """What is known of a label now, for :class:`Overview` and for people who read the file."""

    annotated: list[tuple[StrictInt, StrictInt]]
    predicted: list[tuple[StrictInt, StrictInt]]
    complete: StrictBool


class IndexRecord(Record):
    """The index of an image, or of a part of its revisions, for which there are no ``states``."""

    version: StrictInt = Field(alias="schema")
    image: StrictStr
    written_grid: GridRecord = Field(alias="grid")
    revisions: tuple[RevisionRecord, ...]
    states: dict[StrictStr, StateRecord] | None = None
    reopened: StrictBool = False

    @classmethod
    def of(
        cls, image: str, grid: Grid, records: Sequence[RevisionRecord], merged: Annotations | None = None
    ) -> IndexRecord:
        """For all of what is ``merged``, or for some revisions."""
        written = GridRecord(shape=grid.shape, affine=grid.affine.tolist())
        index = cls(schema=SCHEMA, image=image, grid=written, revisions=tuple(records))
        if merged is not None:
            index.states, index.reopened = _states(merged), merged.reopened
        return index

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.written_grid.shape, np.asarray(self.written_grid.affine))

    def annotations(self, folder: Path) -> Annotations:
        """All of it with its masks. Raises ``CorruptAnnotations``."""
        return Annotations(self.grid, tuple(record.read(folder, self.grid) for record in self.revisions))

    @property
    def overview(self) -> Overview:
        states = (self.states or {}).items()
        annotated = frozenset(label for label, state in states if state.annotated)
        complete = frozenset(label for label, state in states if state.complete)
        last = self.revisions[-1].number if self.revisions else 0
        by_people = any(record.client for record in self.revisions)
        return Overview(annotated, complete, self.reopened, last, by_people)


def read_index(path: Path) -> IndexRecord:
    """An index, checked as far as possible without masks. Raises ``CorruptAnnotations``."""
    content = read_json(path, schema=SCHEMA)
    with one_error(path):
        index = IndexRecord.model_validate(content)
        if not 0 < math.prod(index.grid.shape) <= MOST_VOXELS:
            raise ValueError("its grid has a size that no image has")
        numbers = [record.number for record in index.revisions]
        if numbers != sorted(set(numbers)):
            raise ValueError("its revisions are not in order")
        for record in index.revisions:
            record.update(index.grid, iter(()))
    return index


def _states(annotations: Annotations) -> dict[str, StateRecord]:
    return {
        label: StateRecord(
            annotated=[(key.axis, key.index) for key in annotations.slices if key.label == label],
            predicted=sorted((key.axis, key.index) for key in annotations.predicted if key.label == label),
            complete=label in annotations.complete,
        )
        for label in annotations.labels
    }


logger = logging.getLogger(__name__)

INDEX = "annotations.json"
ANNOTATIONS = ".annotations"
"""The folder of the annotations, beside that of the labels."""


def revision_file(folder: Path, number: int) -> Path:
    """What a revision says, beside its masks: the same as in the index."""
    return folder / f"revision-{number:06d}.json"


def has_revisions(folder: Path) -> bool:
    """Whether there are annotations in an image's folder, with or without an index."""
    return next(folder.glob("revision-*.json"), None) is not None


def recover(folder: Path, why: CorruptAnnotations) -> IndexRecord | None:
    """A sound index for an image's folder, None where nothing of it can be read: the folder is put aside then.

    Every revision whose file is whole counts. Masks that are damaged are taken out of theirs, with a note. What is
    damaged is kept under another name. The caller holds the folder's lock.
    """
    sound = list(_sound_indices(folder))
    if not sound:
        kept = put_aside(folder)
        logger.error("%s Nothing of it can be read: it is kept as %s; its image counts as not annotated", why, kept)
        return None
    image, grid = sound[0].image, sound[0].grid
    known: dict[int, list[RevisionRecord]] = {}
    for index in sound:
        for record in index.revisions if index.image == image and index.grid.matches(grid) else ():
            known.setdefault(record.number, []).append(record)
    damaged: list[str] = []
    records = [_best(folder, grid, known[number], damaged) for number in sorted(known)]
    index = IndexRecord.of(image, grid, records)
    index = IndexRecord.of(image, grid, records, index.annotations(folder))
    for name in (INDEX, *damaged):
        with suppress(FileNotFoundError):
            put_aside(folder / name)
    write_json(folder / INDEX, index.written())
    logger.warning(
        "%s It was rebuilt from what was kept of %d revisions; the old file is kept beside it", why, len(records)
    )
    return index


def _best(folder: Path, grid: Grid, records: Sequence[RevisionRecord], damaged: list[str]) -> RevisionRecord:
    """The first of several records of a revision whose masks are whole; else the first without its masks, whose file
    is added to ``damaged``."""
    for record in records:
        try:
            record.read(folder, grid)
            return record
        except (CorruptAnnotations, OSError) as error:
            damage = error
    record = records[0]
    damaged.append(record.masks)
    keys = ", ".join(f"{entry.label} on slice {entry.index}" for entry in record.entries)
    logger.error("%s Revision %s is used without its masks, of %s", damage, record.number, keys)
    note = f"the masks of this revision were damaged on the server's disk and are lost: annotate again {keys}"
    return record.model_copy(update={"entries": (), "complete": (), "notes": (*record.notes, note)})


def _sound_indices(folder: Path) -> Iterator[IndexRecord]:
    """The index, if it can be read, and every revision's own file, which is an index of one revision."""
    for path in (folder / INDEX, *sorted(folder.glob("revision-*.json"))):
        with suppress(CorruptAnnotations, OSError):
            yield read_index(path)


Stamp: TypeAlias = tuple[int, int, int]
"""Inode, time and size of a file, which is never changed in place: a new stamp is a new content."""


def _stamp(path: Path | str) -> Stamp:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


MASK_BYTES = 64 * 2**20
"""Of masks that are kept in memory. A guess: two thousand slices of 512 x 512."""


_MASKS: Cache[Hashable, list[PackedMask]] = Cache(MASK_BYTES, size=lambda masks: sum(len(one.bits) for one in masks))
"""By file, with its stamp, and what is expected in it: every submission, and every question for support, needs all that
was ever said."""


def _recalled_masks(path: Path, shapes: tuple[tuple[int, int], ...], sha256: str) -> list[PackedMask]:
    """:func:`read_masks`, which does not read again what was read lately."""
    try:
        stamp = _stamp(path)
    except (OSError, ValueError):
        return read_masks(path, shapes, sha256=sha256)  # it says what is wrong
    return _MASKS.recalled((path, stamp, shapes, sha256), lambda: read_masks(path, shapes, sha256=sha256))


def image_folder(root: Path, image: str) -> Path:
    """Where an image's files are. Ids are whatever clients send, so they never become part of a path; damaged records
    may even hold half a character."""
    return root / hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()[:32]


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
    _support: dict[str, tuple[Stamp, SupportSet]] = field(default_factory=dict, compare=False, repr=False)
    """Image -> the stamp of its index file and its annotated slices."""
    _lost: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    """Whether a folder without an index holds revisions."""

    def load(self, image: str) -> Annotations | None:
        """What is known of an image; None when nothing is.

        Raises :class:`~ssmsam.annotation.store.CorruptAnnotations` for what another version wrote.
        """
        return self._load(image_folder(self.root, image), lock=True)

    def overview(self, image: str) -> Overview:
        """Which labels of an image are annotated and which are finished."""
        return self.overviews().get(image, Overview())

    def overviews(self) -> dict[str, Overview]:
        """The same for every image that has annotations. Fast: it is asked for every few seconds.

        What cannot be read and not be rebuilt is left out, and is one of the :attr:`troubles`.
        """
        looked = _LOOKED.get()
        return looked[1] if looked and looked[0] is self else self._look()

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """In this block :meth:`overviews` are what they are now: one answer asks for them many times."""
        before = _LOOKED.set((self, self._look()))
        try:
            yield
        finally:
            _LOOKED.reset(before)

    def _look(self) -> dict[str, Overview]:
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
                self._overviews[path] = stamp, index.image, index.overview
            _, image, overview = self._overviews[path]
            found[image] = overview
        return found

    def merge(self, image: str, update: Update) -> Annotations:
        """Add a submission to what is known of an image, and return all of it.

        Raises InvalidSubmission when the update is on another grid than the stored
        annotations, ``CorruptAnnotations``, and OSError where the disk is full; nothing is changed then.
        """
        folder = image_folder(self.root, image)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            known = self._load(folder, lock=False) or Annotations(update.grid)
            merged = known.merge(update)
            if merged is not known:
                folder.mkdir(parents=True, exist_ok=True)  # a damaged one was put aside
                old = read_index(folder / INDEX).revisions if known.revisions else ()
                new = [RevisionRecord.write(folder, update) for update in merged.revisions[len(old) :]]
                for record in (*old, *new):  # what the index says, once more: it can be rebuilt from these
                    own = revision_file(folder, record.number)
                    if record in new or not own.exists():
                        write_json(own, IndexRecord.of(image, merged.grid, [record]).written())
                write_json(folder / INDEX, IndexRecord.of(image, merged.grid, [*old, *new], merged).written())
            return merged

    def images(self) -> list[str]:
        """The images that have annotations, sorted."""
        return sorted(self.overviews())

    def support(self) -> SupportSet:
        """Every annotated slice of every image. An image is read again only when something was submitted for it."""
        images = self.images()
        for gone in set(self._support) - set(images):
            self._support.pop(gone, None)
        found: list[SupportSlice] = []
        for image in images:
            stamp, *_ = self._overviews.get(str(image_folder(self.root, image) / INDEX), (None,))
            known = self._support.get(image)
            if known is None or known[0] != stamp:
                loaded = None
                try:
                    loaded = self.load(image)
                except (CorruptAnnotations, OSError) as error:
                    logger.error("Nothing is learned from %s: %s", image, error)
                known = stamp or (0, 0, 0), SupportSet.of({} if loaded is None else {image: loaded})
                self._support[image] = known
            found += known[1]
        return SupportSet(tuple(found))

    def _load(self, folder: Path, *, lock: bool) -> Annotations | None:
        try:
            index = self._index(folder, lock=lock)
            return None if index is None else index.annotations(folder)
        except UnknownSchema:
            raise
        except CorruptAnnotations as error:  # masks are damaged
            index = self._recovered(folder, error, lock=lock)
            return None if index is None else index.annotations(folder)

    def _index(self, folder: Path, *, lock: bool) -> IndexRecord | None:
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

    def _recovered(self, folder: Path, error: CorruptAnnotations, *, lock: bool) -> IndexRecord | None:
        with FileLock(folder / "lock") if lock else nullcontext():
            if lock:  # another thread or process may have done it meanwhile
                with suppress(CorruptAnnotations, OSError):
                    index = _sound_index(folder / INDEX)
                    index.annotations(folder)
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
                found[path] = _stamp(path)
            except (FileNotFoundError, NotADirectoryError):  # only work was noted so far, or it is lost
                if folder.path not in self._lost:
                    self._lost[folder.path] = has_revisions(Path(folder.path))
                if self._lost[folder.path]:
                    found[path] = 0, 0, 0
            except OSError as error:
                self.troubles[path] = str(error)
        return found


_LOOKED: ContextVar[tuple[AnnotationStore, dict[str, Overview]] | None] = ContextVar("ssmsam_looked", default=None)
_FOLDER = re.compile("[0-9a-f]{32}")


def _sound_index(path: Path) -> IndexRecord:
    index = read_index(path)
    if index.states is None:
        raise CorruptAnnotations(f"{path} does not hold what is known now")
    return index
