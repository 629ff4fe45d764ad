"""A labelled set on disk, and what its label numbers mean.

A set is a folder with ``images/NAME`` and ``labels/NAME``, or a folder SET of images beside a folder SET_labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.reading import read_volume
from ssmsam.report import files_digest
from ssmsam.volume.geometry import FILES_MM
from ssmsam.volume.volume import Volume

_ENDINGS = (".nii.gz", ".nii", ".nrrd")


@dataclass(frozen=True)
class Case:
    """One image with its labels, not read yet."""

    name: str
    image: Path
    labels: Path

    def read(self) -> tuple[Volume, np.ndarray]:
        """The image, and the label numbers (slices, rows, columns) on the same grid.

        Raises ValueError when the two files do not lie on one grid.
        """
        volume, labels = read_volume(self.image), read_volume(self.labels)
        if not volume.grid.matches(labels.grid, tolerance_mm=FILES_MM):
            raise ValueError(f"{self.name}: the image and its labels lie on different grids; make them one first")
        return volume, np.rint(labels.array).astype(np.int32)


@dataclass(frozen=True)
class LabelledSet:
    """Cases that share label numbers. ``label_names`` maps number -> name, without the background. ``organs`` are the
    names of the labels that count, None for all."""

    name: str
    cases: tuple[Case, ...]
    label_names: Mapping[int, str]
    organs: tuple[str, ...] | None = None

    def label_name(self, number: int) -> str:
        return self.label_names.get(number, f"label {number}")

    def targets(self, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(name, mask (slices, rows, columns)) of every label that counts and that the case holds, by rising number."""
        for number in np.unique(labels):
            name = self.label_name(int(number))
            if number > 0 and (self.organs is None or name in self.organs):
                yield name, labels == number

    def manifest(self) -> dict[str, Any]:
        files = [path for case in self.cases for path in (case.image, case.labels)]
        found = {"set": self.name, "cases": [case.name for case in self.cases], "sha256": files_digest(files)}
        return found if self.organs is None else found | {"organs": list(self.organs)}


def open_set(
    folder: Path,
    *,
    label_names: Mapping[int, str] | None = None,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    organs: Sequence[str] | None = None,
) -> LabelledSet:
    """The cases of ``folder``; those named in ``only`` if given; at most ``limit`` of them.

    Raises ValueError, with what to do, when there is no such set, no case or not the wanted one.
    """
    found = _cases(folder)
    if not found:
        raise ValueError(
            f"no images with labels in {folder}: expected images/NAME and labels/NAME ({' '.join(_ENDINGS)})"
        )
    missing = sorted(set(only or ()) - set(found))
    if missing:
        raise ValueError(f"{folder} has no case {', '.join(missing)}; it has {', '.join(found)}")
    chosen = [found[name] for name in found if only is None or name in only]
    names = dict(label_names or {})
    unknown = sorted(set(organs or ()) - set(names.values()))
    if unknown:
        known = ", ".join(names.values()) or "none; name them with --labels NAME=NUMBER"
        raise ValueError(f"{folder} has no label {', '.join(unknown)}; known labels: {known}")
    return LabelledSet(folder.resolve().name, tuple(chosen[:limit]), names, tuple(organs) if organs else None)


def _cases(folder: Path) -> dict[str, Case]:
    images, labels = _folders(folder.resolve())
    found: dict[str, Case] = {}
    for image in sorted(images.glob("*")):
        ending = next((end for end in _ENDINGS if image.name.endswith(end)), None)
        if ending and (labels / image.name).exists():
            name = image.name[: -len(ending)]
            found[name] = Case(name, image, labels / image.name)
    return found


def _folders(folder: Path) -> tuple[Path, Path]:
    """Where the images and the labels of a set are."""
    if (folder / "images").is_dir():
        return folder / "images", folder / "labels"
    return folder, folder.with_name(folder.name + "_labels")


@dataclass(frozen=True)
class SetNotes:
    """What a label table says of one set: the names of its labels, and the cases held out from training."""

    label_names: Mapping[int, str]
    validation: tuple[str, ...] = ()


def read_notes(table: Path, set_name: str) -> SetNotes:
    """The notes on ``set_name`` in a table, empty ones when it is not there.

    The table is JSON: ``{set: {"labels": {number: name}, "validation": [case, ...]}}``. Raises ValueError when
    the file is not such a table.
    """
    try:
        entry = json.loads(table.read_text()).get(set_name, {})
        names = {int(number): str(name) for number, name in entry.get("labels", {}).items()}
        return SetNotes(names, tuple(entry.get("validation", ())))
    except (OSError, ValueError, AttributeError) as error:
        shape = '{set: {"labels": {"1": name}, "validation": [case]}}'
        raise ValueError(f"{table} is not a label table ({error}); expected {shape}") from error
