"""What a few-shot method is given, and what it gives back.

The truth of the query is not among it: a :class:`Task` holds images, and masks of annotated slices that own their
memory. Nothing that a method can reach from there leads to other labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from ssmsam.progress import Progress, silent
from ssmsam.volume.volume import Volume
from ssmsam_research.protocols.clicks import chosen_slices


@dataclass(frozen=True, eq=False)
class Support:
    """The annotated slices of one volume: ``masks`` maps slice number -> mask (rows, columns) bool."""

    volume: Volume
    masks: Mapping[int, np.ndarray]

    @classmethod
    def from_labels(cls, volume: Volume, truth: np.ndarray, slices: list[int]) -> Support:
        """Copies of some slices of ``truth`` (slices, rows, columns); a view would lead to all the others."""
        return cls(volume, {index: np.array(truth[index] != 0) for index in slices})


@dataclass(frozen=True)
class Part:
    """A part of the query's extent, and the one slice of each support that is meant for it."""

    slices: range
    support_slices: tuple[int, ...]


@dataclass(frozen=True)
class SupportSlice:
    """One annotated slice of one support."""

    support: Support
    index: int

    @property
    def mask(self) -> np.ndarray:
        return self.support.masks[self.index]


@dataclass(frozen=True, eq=False)
class Task:
    """Segment one object in ``query``, shown on annotated slices of the ``supports``.

    ``extent`` are the slices of the query that may hold the object, None when nobody knows. ``parts`` cut the extent
    where the protocol says which support slice belongs to which part; empty when every slice is for all.
    """

    supports: tuple[Support, ...]
    query: Volume
    extent: range | None = None
    parts: tuple[Part, ...] = ()

    @property
    def annotated(self) -> dict[int, np.ndarray]:
        """The annotated slices of the query itself, by slice number; empty when all supports are other volumes."""
        own = [support.masks for support in self.supports if support.volume is self.query]
        return {index: mask for masks in own for index, mask in sorted(masks.items())}

    def matched(self) -> Iterator[tuple[range, list[SupportSlice]]]:
        """Slices of the query with the support slices for them; together all slices that may hold the object."""
        if not self.parts:
            every = [SupportSlice(support, index) for support in self.supports for index in support.masks]
            yield self.extent or range(self.query.shape[0]), every
        for part in self.parts:
            chosen = zip(self.supports, part.support_slices, strict=True)
            yield part.slices, [SupportSlice(support, index) for support, index in chosen]

    def finished(self, mask: np.ndarray) -> np.ndarray:
        """What a user would keep of a method's mask: nothing outside the extent, annotated slices as annotated.

        Raises ValueError when the mask is not on the query's grid.
        """
        if mask.shape != self.query.shape:
            raise ValueError(f"a method answered a mask of shape {mask.shape} for a query of {self.query.shape}")
        kept = np.array(mask != 0)
        if self.extent is not None:
            kept[: self.extent.start] = False
            kept[self.extent.stop :] = False
        for index, annotation in self.annotated.items():
            kept[index] = annotation
        return kept


class FewShotMethod(Protocol):
    """A way to segment from a few annotated slices."""

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        """The object's mask (slices, rows, columns) bool on the query's grid.

        The same task gives the same mask. What is on annotated slices or outside the extent does not matter.
        """
        ...


def extent_of(truth: np.ndarray) -> range:
    """From the first to the last slice of ``truth`` (slices, rows, columns) that is not empty.

    Raises ValueError for an empty truth.
    """
    present = np.flatnonzero(truth.any(axis=(1, 2)))
    if present.size == 0:
        raise ValueError("an empty mask has no extent")
    return range(int(present[0]), int(present[-1]) + 1)


def with_ends(truth: np.ndarray, k: int) -> list[int]:
    """The first, the last and equally spaced slices of the organ: ``k`` of them, or all when it has fewer."""
    return chosen_slices(truth, list(np.linspace(0.0, 1.0, k)))


def without_ends(truth: np.ndarray, k: int) -> list[int]:
    """Slices from 10 to 90 % of the organ's extent, equally spaced; fewer than ``k`` where two fall on one."""
    return chosen_slices(truth, list(np.linspace(0.1, 0.9, k)))


def in_middles(truth: np.ndarray, k: int) -> list[int]:
    """The middle slice of each of ``k`` equal parts of the organ; fewer than ``k`` where two fall on one."""
    return sorted(set(middles(truth, k)))


def middles(truth: np.ndarray, parts: int) -> list[int]:
    """The slice in the middle of each of so many equal parts of the extent, ascending; may repeat in short organs.

    Where the organ has a gap, the nearest slice that holds it.
    """
    extent, present = extent_of(truth), np.flatnonzero(truth.any(axis=(1, 2)))
    wanted = [extent.start + (2 * part + 1) * len(extent) // (2 * parts) for part in range(parts)]
    return [int(present[np.argmin(np.abs(present - index))]) for index in wanted]


def split(extent: range, parts: int) -> list[range]:
    """``extent`` in so many neighbouring ranges of about one length; some are empty in a short extent."""
    bounds = [extent.start + round(part * len(extent) / parts) for part in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(bounds)]


def same_direction(one: Volume, other: Volume) -> bool:
    """Whether rising slice numbers go the same way through the body in both volumes."""
    return float(one.affine[:3, 2] @ other.affine[:3, 2]) >= 0


def evenly(count: int, wanted: int) -> Sequence[int]:
    """``wanted`` different positions spread over ``count`` of them. Raises ValueError when there are too few."""
    if wanted > count:
        raise ValueError(f"{wanted} positions of {count}")
    return [(2 * n + 1) * count // (2 * wanted) for n in range(wanted)]
