"""Annotations on disk: one folder per image, one file of masks per revision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssmsam.annotation.annotations import Annotations, Revision, Update
from ssmsam.annotation.files import read_json, read_masks, write_json, write_masks
from ssmsam.annotation.support import SupportSet
from ssmsam.annotation.truth import PackedMask, SliceAnnotation, SliceKey, Source
from ssmsam.imaging.volume import Grid

SCHEMA = 1
INDEX = "annotations.json"


def image_folder(root: Path, image: str) -> Path:
    """Where an image's files are. Ids are whatever clients send, so they never become part of a path."""
    return root / hashlib.sha256(image.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class AnnotationStore:
    """The annotations of all images under ``root``. Several processes may submit at once."""

    root: Path

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
                write_json(folder / INDEX, {**index, "states": _states(merged)})
            return merged

    def images(self) -> list[str]:
        """The images that have annotations, sorted."""
        return sorted(read_json(path, schema=SCHEMA)["image"] for path in self.root.glob(f"*/{INDEX}"))

    def support(self) -> SupportSet:
        """Every annotated slice of every image."""
        known = {image: self.load(image) for image in self.images()}
        return SupportSet.of({image: annotations for image, annotations in known.items() if annotations is not None})


def _states(annotations: Annotations) -> dict[str, Any]:
    """What is known now, for people who read the file: it is never read back."""
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
    )
    return Revision(written["number"], update)


def _read_entry(entry: Mapping[str, Any], mask: PackedMask, known: PackedMask | None) -> SliceAnnotation:
    return SliceAnnotation(mask, Source(entry["source"]), entry["client"], entry["when"], known)
