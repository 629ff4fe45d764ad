"""Labelled slices from files: an image, a label map on its grid, and which of its slices are truth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmsam.api import Example
from ssmsam.fewshot.support import NothingToLearn
from ssmsam.reading import read_volume
from ssmsam.volume.geometry import FILES_MM, Plane
from ssmsam.volume.volume import Volume

_SUPPORT = re.compile(r"(?P<image>[^:]+):(?P<labels>[^:]+)(?::(?P<slices>[\d,:-]+))?")
_RANGE = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+)(?::(?P<step>\d+))?)?")


@dataclass(frozen=True)
class LabelledFile:
    """An image's file or DICOM folder, its label map's file, and the slices that are truth.

    ``slices`` None stands for all slices that hold a label. Slices are counted from 0 along the plane of work.
    """

    image: Path
    labels: Path
    slices: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> LabelledFile:
        """``IMAGE:LABEL`` or ``IMAGE:LABEL:slices``, as in ``ct.nii.gz:organs.nii.gz:10,20-40:5``.

        Raises ValueError for anything else.
        """
        found = _SUPPORT.fullmatch(text)
        if found is None:
            raise ValueError(
                "a support is IMAGE:LABEL or IMAGE:LABEL:slices, as in "
                f"ct.nii.gz:organs.nii.gz:10,20-40:5, got {text!r}"
            )
        slices = found["slices"]
        return cls(Path(found["image"]), Path(found["labels"]), None if slices is None else parse_slices(slices))


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A :class:`LabelledFile` that was read: ``labels`` (slices, rows, columns) whole numbers on the image's grid."""

    name: str
    image: Volume
    labels: np.ndarray
    slices: tuple[int, ...] | None

    def numbers(self) -> list[int]:
        """The label numbers that the map holds, ascending, without 0."""
        return [int(number) for number in np.unique(self.labels) if number]

    def annotated(self, number: int, plane: Plane) -> list[int]:
        """The slices that are truth for a label. An empty one counts only when it is listed, and only for labels that
        the map holds elsewhere: what the map never draws was not looked for."""
        drawn = plane.stack(self.labels == number).any(axis=(1, 2))
        if self.slices is None or not drawn.any():
            return np.flatnonzero(drawn).tolist()
        return sorted(set(self.slices))


def parse_slices(text: str) -> tuple[int, ...]:
    """Slice numbers from ``10,20-40:5``: single ones and ranges with both ends, with a step after a colon.

    Ascending, each once. Raises ValueError for anything else.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first, last, step = (int(found[n] or -1) for n in ("first", "last", "step")) if found else (1, 0, 0)
        if last == -1:
            last = first
        if last < first or step == 0:
            raise ValueError(f"slices are numbers and ranges such as 10,20-40:5, got {part!r} in {text!r}")
        numbers.update(range(first, last + 1, max(1, step)))
    return tuple(sorted(numbers))


def parse_names(texts: Sequence[str]) -> dict[str, int]:
    """Label names and numbers from ``NAME=NUMBER``. Raises ValueError for anything else, and for one given twice."""
    names: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdecimal() or not int(number):
            raise ValueError(f"a label is named by NAME=NUMBER with a number from 1, as in liver=1, got {text!r}")
        if name in names or int(number) in names.values():
            raise ValueError(f"{text!r} names a label or a number for the second time")
        names[name] = int(number)
    return names


def read_labelled(file: LabelledFile, *, plane: str | None = None) -> LabelledImage:
    """Read image and label map. Raises UnreadableVolume, and ValueError when they do not belong together.

    ``plane`` is that of :meth:`Plane.named`.
    """
    image, labels = read_volume(file.image), read_volume(file.labels)
    if not image.grid.matches(labels.grid, tolerance_mm=FILES_MM):
        raise ValueError(
            f"{file.labels.name} {labels.shape} does not lie on the grid of {file.image.name} {image.shape}: "
            "resample the label map to the image, then run again"
        )
    numbers = np.rint(labels.array)
    if (numbers != labels.array).any() or numbers.min() < 0:
        raise ValueError(f"{file.labels.name} is not a label map: it holds values other than 0, 1, 2, ...")
    count = Plane.named(plane, image.grid).count(image.grid)
    beyond = [index for index in file.slices or () if index >= count]
    if beyond:
        raise ValueError(f"{file.image.name} has the slices 0 to {count - 1} in this plane, but {beyond[0]} is listed")
    return LabelledImage(file.image.name, image, numbers.astype(np.int64), file.slices)


def label_numbers(images: Sequence[LabelledImage], names: Mapping[str, int] | None = None) -> dict[str, int]:
    """The labels to learn: those named, else every number found, called "label 1", "label 2", ...

    Raises :class:`NothingToLearn` for a named one that no map holds.
    """
    found = sorted({number for image in images for number in image.numbers()})
    if not names:
        return {f"label {number}": number for number in found}
    missing = [f"{name}={number}" for name, number in names.items() if number not in found]
    if missing:
        raise NothingToLearn(
            f"no label map holds {', '.join(missing)}; the numbers found are {', '.join(map(str, found)) or 'none'}: "
            "correct --names, or draw the label"
        )
    return dict(names)


def examples_from(
    images: Sequence[LabelledImage], numbers: Mapping[str, int], *, plane: str | None = None
) -> dict[str, list[Example]]:
    """The labelled slices of several images, by label. ``numbers`` (label -> number) mean the same in all of them."""
    examples: dict[str, list[Example]] = {label: [] for label in numbers}
    for image in images:
        work = Plane.named(plane, image.image.grid)
        stack = work.stack(image.labels)
        for label, number in numbers.items():
            examples[label] += [
                Example(image.image, index, stack[index] == number, image.name)
                for index in image.annotated(number, work)
            ]
    return examples
