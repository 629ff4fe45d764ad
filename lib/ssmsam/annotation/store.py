"""Annotations on disk: one folder per image, one file of masks per revision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock

from ssmsam.annotation.annotations import Annotations, Revision, Update
from ssmsam.annotation.files import read_json, read_masks, write_json, write_masks
from ssmsam.annotation.support import SupportSet
from ssmsam.annotation.truth import PackedMask, SliceAnnotation, SliceKey, Source
from ssmsam.imaging.volume import Grid

SCHEMA = 1
INDEX = "annotations.json"

Stamp: TypeAlias = tuple[int, int, int]
"""Inode, time and size of a file, which is never changed in place: a new stamp is a new content."""


def image_folder(root: Path, image: str) -> Path:
    """Where an image's files are. Ids are whatever clients send, so they never become part of a path."""
    return root / hashlib.sha256(image.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Overview:
    """What is known of an image, without its masks."""

    annotated: frozenset[str] = frozenset()
    """Labels that have an annotated slice."""
    complete: frozenset[str] = frozenset()
    """Labels that were declared finished on the whole volume."""
    reopened: bool = False
    """Whether a label was finished once and is not now."""

    @property
    def finished(self) -> bool:
        """Whether something is annotated, and all of that is complete."""
        return bool(self.annotated) and self.annotated <= self.complete


@dataclass(frozen=True)
class AnnotationStore:
    """The annotations of all images under ``root``. Several processes may submit at once."""

    root: Path
    _overviews: dict[str, tuple[Stamp, str, Overview]] = field(default_factory=dict, compare=False, repr=False)
    """Index file -> its stamp, image and overview."""
    _support: list[tuple[dict[str, Stamp], SupportSet]] = field(default_factory=list, compare=False, repr=False)
    """The last support set, with the stamps of all files that it was read from."""

    def load(self, image: str) -> Annotations | None:
        """What is known of an image; None when nothing was ever submitted.

        Raises :class:`~ssmsam.annotation.files.CorruptAnnotations` when a file is damaged.
        """
        folder = image_folder(self.root, image)
        if not (folder / INDEX).exists():
            return None
        index = read_json(folder / INDEX, schema=SCHEMA)
        grid = Grid(tuple(index["grid"]["shape"]), index["grid"]["affine"])
        return Annotations(grid, tuple(_read_revision(folder, grid, written) for written in index["revisions"]))

    def overview(self, image: str) -> Overview:
        """Which labels of an image are annotated and which are finished. Raises ``CorruptAnnotations``."""
        return self.overviews().get(image, Overview())

    def overviews(self) -> dict[str, Overview]:
        """The same for every image that has annotations. Fast: it is asked for every few seconds.

        Raises ``CorruptAnnotations``.
        """
        found = {}
        stamps = self._stamps()
        for path in set(self._overviews) - set(stamps):  # removed with their images
            self._overviews.pop(path, None)
        for path, stamp in stamps.items():
            known = self._overviews.get(path)
            if known is None or known[0] != stamp:
                index = read_json(Path(path), schema=SCHEMA)
                states = index["states"].items()
                annotated = frozenset(label for label, state in states if state["annotated"])
                complete = frozenset(label for label, state in states if state["complete"])
                overview = Overview(annotated, complete, index.get("reopened", False))
                known = self._overviews[path] = stamp, index["image"], overview
            found[known[1]] = known[2]
        return found

    def merge(self, image: str, update: Update) -> Annotations:
        """Add a submission to what is known of an image, and return all of it.

        Raises :class:`~ssmsam.annotation.truth.InvalidSubmission` when the update is on another grid than the stored
        annotations, and ``CorruptAnnotations``; nothing is written then.
        """
        folder = image_folder(self.root, image)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            known = self.load(image) or Annotations(update.grid)
            merged = known.merge(update)
            if merged is not known:
                old = read_json(folder / INDEX, schema=SCHEMA)["revisions"] if known.revisions else []
                new = [_write_revision(folder, revision) for revision in merged.revisions[len(old) :]]
                grid = {"shape": list(merged.grid.shape), "affine": merged.grid.affine.tolist()}
                index = {"schema": SCHEMA, "image": image, "grid": grid, "revisions": [*old, *new]}
                write_json(folder / INDEX, {**index, "states": _states(merged), "reopened": merged.reopened})
            return merged

    def images(self) -> list[str]:
        """The images that have annotations, sorted."""
        return sorted(self.overviews())

    def support(self) -> SupportSet:
        """Every annotated slice of every image. The masks are read again only when something was submitted."""
        stamps = self._stamps()
        if not self._support or self._support[-1][0] != stamps:
            known = {image: self.load(image) for image in self.images()}
            found = SupportSet.of({image: one for image, one in known.items() if one is not None})
            self._support[:] = [(stamps, found)]
        return self._support[-1][1]

    def _stamps(self) -> dict[str, Stamp]:
        """The index files that there are."""
        found = {}
        for folder in os.scandir(self.root) if self.root.exists() else ():
            path = f"{folder.path}/{INDEX}"
            with suppress(FileNotFoundError, NotADirectoryError):  # only the work on that image was noted so far
                status = os.stat(path)
                found[path] = status.st_ino, status.st_mtime_ns, status.st_size
        return found


def _states(annotations: Annotations) -> dict[str, Any]:
    """What is known now, for :class:`Overview` and for people who read the file."""
    return {
        label: {
            "annotated": [[key.axis, key.index] for key in annotations.slices if key.label == label],
            "predicted": sorted([key.axis, key.index] for key in annotations.predicted if key.label == label),
            "complete": label in annotations.complete,
        }
        for label in annotations.labels
    }


def _write_revision(folder: Path, revision: Revision) -> dict[str, Any]:
    """Write a revision's masks; what the index says of it."""
    update, masks, entries = revision.update, [], []
    for key, entry in sorted(update.entries.items()):
        masks += [entry.mask] if entry.known is None else [entry.mask, entry.known]
        entries.append(
            {
                **asdict(key),
                "shape": list(entry.mask.shape),
                "source": entry.source.value,
                "client": entry.client,
                "when": entry.when,
                "partly": entry.known is not None,
            }
        )
    name = f"revision-{revision.number:06d}.npz"
    return {
        "number": revision.number,
        "client": update.client,
        "when": update.when,
        "notes": list(update.notes),
        "masks": name,
        "sha256": write_masks(folder / name, masks),
        "entries": entries,
        "predicted": [list(astuple(key)) for key in sorted(update.predicted)],
        "complete": sorted(update.complete),
        "labels": sorted(update.labels),
        "withdrawn": [list(astuple(key)) for key in sorted(update.withdrawn)],
        "reopened": sorted(update.reopened),
        "undoes": sorted(update.undoes),
    }


def _read_revision(folder: Path, grid: Grid, written: Mapping[str, Any]) -> Revision:
    shapes: list[tuple[int, int]] = []
    for entry in written["entries"]:
        height, width = entry["shape"]
        shapes += [(height, width)] * (2 if entry["partly"] else 1)
    masks = iter(read_masks(folder / written["masks"], shapes, sha256=written["sha256"]))
    entries = {
        SliceKey(entry["label"], entry["axis"], entry["index"]): _read_entry(
            entry, next(masks), next(masks) if entry["partly"] else None
        )
        for entry in written["entries"]
    }
    update = Update(
        grid,
        entries,
        frozenset(SliceKey(*key) for key in written["predicted"]),
        frozenset(written["complete"]),
        frozenset(written["labels"]),
        written["client"],
        written["when"],
        tuple(written["notes"]),
        frozenset(SliceKey(*key) for key in written.get("withdrawn", ())),
        frozenset(written.get("reopened", ())),
        frozenset(written.get("undoes", ())),
    )
    return Revision(written["number"], update)


def _read_entry(entry: Mapping[str, Any], mask: PackedMask, known: PackedMask | None) -> SliceAnnotation:
    return SliceAnnotation(mask, Source(entry["source"]), entry["client"], entry["when"], known)
