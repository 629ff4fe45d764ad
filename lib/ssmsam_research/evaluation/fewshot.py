"""What a few-shot method is given, and what it gives back.

The truth of the query is not among it: a :class:`Task` holds images, and masks of annotated slices that own their
memory. Nothing that a method can reach from there leads to other labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssmsam.progress import Progress, silent
from ssmsam.volume.volume import Volume


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
