"""Where an organ is along the slices, and which slices of it are annotated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.clicks import chosen_slices


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
