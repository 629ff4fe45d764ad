"""Annotations as JSON and files of masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from ssmsam.annotation.annotations import Annotations, Revision, Update
from ssmsam.annotation.files import CorruptAnnotations, read_json, read_masks, write_masks
from ssmsam.annotation.truth import PackedMask, SliceAnnotation, SliceKey, Source
from ssmsam.imaging.volume import Grid

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
        raise CorruptAnnotations(f"{path} does not hold annotations ({type(error).__name__}: {error})") from error


def write_index(
    image: str, grid: Grid, records: Sequence[Mapping[str, Any]], merged: Annotations | None
) -> dict[str, Any]:
    """The index of an image, or of a part of its revisions, for which nothing is ``merged``."""
    written = {"shape": list(grid.shape), "affine": grid.affine.tolist()}
    index = {"schema": SCHEMA, "image": image, "grid": written, "revisions": list(records)}
    return index if merged is None else {**index, "states": _states(merged), "reopened": merged.reopened}


def read_index(path: Path) -> dict[str, Any]:
    """An index, checked as far as possible without masks. Raises ``CorruptAnnotations``."""
    index = read_json(path, schema=SCHEMA)
    with one_error(path):
        if not isinstance(index["image"], str):
            raise TypeError("its image has no name")
        grid, numbers = grid_of(index), [record["number"] for record in index["revisions"]]
        if not 0 < math.prod(grid.shape) <= MOST_VOXELS:
            raise ValueError("its grid has a size that no image has")
        if numbers != sorted(set(numbers)) or not all(isinstance(number, int) and number > 0 for number in numbers):
            raise ValueError("its revisions are not in order")
        for record in index["revisions"]:
            if not isinstance(record["masks"], str) or not isinstance(record["sha256"], str):
                raise TypeError("a revision without a file of masks")
            _read_update(grid, record, iter(()))
    return index


def grid_of(index: Mapping[str, Any]) -> Grid:
    return Grid(tuple(index["grid"]["shape"]), index["grid"]["affine"])


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


def write_revision(folder: Path, revision: Revision) -> dict[str, Any]:
    """Write a revision's masks; what an index says of it."""
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


def read_revision(folder: Path, grid: Grid, written: Mapping[str, Any]) -> Revision:
    """A revision with its masks. Raises ``CorruptAnnotations``."""
    with one_error(folder / str(written.get("masks"))):
        if not written["entries"]:
            return Revision(written["number"], _read_update(grid, written, iter(())))
        shapes: list[tuple[int, int]] = []
        for entry in written["entries"]:
            height, width = entry["shape"]
            shapes += [(height, width)] * (2 if entry["partly"] else 1)
        masks = read_masks(folder / Path(written["masks"]).name, shapes, sha256=written["sha256"])
        return Revision(written["number"], _read_update(grid, written, iter(masks)))


def _read_update(grid: Grid, written: Mapping[str, Any], masks: Iterator[PackedMask]) -> Update:
    """What a revision says. Without ``masks`` its slices are empty, which is enough to check it."""
    entries = {}
    for entry in written["entries"]:
        key = _read_key((entry["label"], entry["axis"], entry["index"]))
        blank = PackedMask((entry["shape"][0], entry["shape"][1]), b"")
        mask = next(masks, blank)
        known = next(masks, blank) if entry["partly"] else None
        entries[key] = SliceAnnotation(mask, Source(entry["source"]), str(entry["client"]), str(entry["when"]), known)
    return Update(
        grid,
        entries,
        frozenset(map(_read_key, written["predicted"])),
        _read_names(written["complete"]),
        _read_names(written["labels"]),
        str(written["client"]),
        str(written["when"]),
        tuple(map(str, written["notes"])),
        frozenset(map(_read_key, written.get("withdrawn", ()))),
        _read_names(written.get("reopened", ())),
        frozenset(written.get("undoes", ())),
    )


def _read_key(written: Sequence[Any]) -> SliceKey:
    label, axis, index = written
    if not (isinstance(label, str) and type(axis) is int and type(index) is int):
        raise TypeError(f"{written} is no slice of a label")
    return SliceKey(label, axis, index)


def _read_names(written: Sequence[Any]) -> frozenset[str]:
    if not all(isinstance(name, str) for name in written):
        raise TypeError(f"{written} are no names")
    return frozenset(written)
