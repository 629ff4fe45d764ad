"""Where an object of a volume ends along the slices: outwards from slices of which one is sure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_TOUCHING = np.ones((3, 3))


@dataclass(frozen=True)
class EndsConfig:
    """When the mask of a slice does not go on from the mask of the slice before."""

    least_overlap: float = 0.2
    """Masks of neighbouring slices that overlap less (IoU) are two objects,"""
    most_growth: float = 1.7
    """and so are those of which the outer one is larger by this factor"""
    grown_overlap: float = 0.6
    """unless they overlap as much as this,"""
    small_cells: int = 60
    """or are smaller than this: a tip widens fast."""


def beyond_the_ends(masks: np.ndarray, sure: np.ndarray, config: EndsConfig) -> list[int]:
    """Rows (of n) that lie past an end of the target, though something was found on them.

    Outwards from the outermost of the ``sure`` rows (n,) an organ shrinks and ends. A mask (n, S, S) that hardly
    overlaps with the one before it, or is suddenly much larger, is the neighbour that comes after. Without any sure row
    nothing is known of ends.
    """
    known = np.flatnonzero(sure)
    if not len(known):
        return []
    found: list[int] = []
    for outwards in (range(known[-1] + 1, len(masks)), range(known[0] - 1, -1, -1)):
        order = list(outwards)
        for number, row in enumerate(order):
            before = masks[row - 1 if row > known[-1] else row + 1]
            if _is_another(masks[row], before, config):
                found += order[number:]
                break
    return found


def one_object(
    masks: np.ndarray,
    sureness: np.ndarray,
    *,
    areas: tuple[float, float],
    slices_wide: float,
    config: EndsConfig,
) -> np.ndarray:
    """The part of masks (n, S, S) that belongs to one object, the likeliest: a mask of the same shape.

    Where nothing of the volume is annotated, no row is known to hold the target. The likeliest one is where the decoder
    is sure of itself, ``sureness`` (n,) in [0, 1], and finds a piece within the smallest and largest of the annotated
    ``areas`` in cells; averaged over ``slices_wide`` rows (standard deviation), so that a chance hit counts little.
    From there outwards every row keeps the pieces that overlap with the row before, until one is another object or
    nothing is left.
    """
    found = np.zeros_like(masks)
    pieces = [_likeliest_piece(mask, areas) for mask in masks]
    evidence = np.array([fit for _, fit in pieces]) * sureness
    if not evidence.any():
        return found
    averaged = ndimage.gaussian_filter1d(evidence, slices_wide, mode="constant") * (evidence > 0)
    start = int(averaged.argmax())
    found[start] = pieces[start][0]
    for outwards in (range(start + 1, len(masks)), range(start - 1, -1, -1)):
        before = found[start]
        for row in outwards:
            mask = _pieces_on(masks[row], before)
            if not mask.any() or _is_another(mask, before, config):
                break
            found[row] = before = mask
    return found


def _likeliest_piece(mask: np.ndarray, areas: tuple[float, float]) -> tuple[np.ndarray, float]:
    """The piece of a mask (S, S) whose area fits best, and how well in [0, 1]: 1 for the largest that fits."""
    parts, count = ndimage.label(mask, structure=_TOUCHING)
    if count == 0:
        return mask, 0.0
    sizes = np.bincount(parts.ravel())[1:]
    fits = np.minimum(1.0, np.minimum(sizes / areas[0], areas[1] / sizes))
    best = max(range(count), key=lambda number: (fits[number], sizes[number]))
    return parts == best + 1, float(fits[best])


def _pieces_on(mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The pieces of a mask (S, S) that overlap with another."""
    pieces, _ = ndimage.label(mask, structure=_TOUCHING)
    return np.isin(pieces, np.unique(pieces[mask & before]))


def _is_another(mask: np.ndarray, before: np.ndarray, config: EndsConfig) -> bool:
    """Whether a slice's mask (S, S) does not go on from the one on the slice before."""
    area, union = int(mask.sum()), int((mask | before).sum())
    overlap = int((mask & before).sum()) / max(1, union)
    grown = area > config.small_cells and area > config.most_growth * before.sum()
    return overlap < config.least_overlap or (grown and overlap < config.grown_overlap)
