"""Where an object of a volume ends along the slices: outwards from slices of which one is sure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    evidence: np.ndarray,
    config: EndsConfig,
    *,
    plausibility: Callable[[np.ndarray], float] = lambda found: 0.0,
    candidates: int = 1,
    more: Sequence[tuple[np.ndarray, float]] = (),
) -> np.ndarray:
    """The part of masks (n, S, S) that belongs to the object with most ``evidence`` (n,): a mask of the same shape.

    Among several ``candidates``, and ``more`` with their evidence, that with most evidence and ``plausibility``, the
    logarithm of a factor.
    """
    best, most = np.zeros_like(masks), -np.inf
    for found, shown in (*more, *objects(masks, evidence, candidates, config)):
        worth = float(np.log(shown)) + plausibility(found)
        if worth > most:
            best, most = found, worth
    return best


def objects(
    masks: np.ndarray, evidence: np.ndarray, most: int, config: EndsConfig
) -> Iterator[tuple[np.ndarray, float]]:
    """Objects among masks (n, S, S), each with its greatest ``evidence`` (n,), which falls from one to the next.

    Where nothing of the volume is annotated, no row is sure. The row with most evidence is the best that there is: of
    its mask the largest piece is the object. From there outwards every slice keeps the pieces that overlap with the
    slice before, until one is another object or nothing is left. The next object begins on a row without the others.
    """
    left, shown = masks.copy(), np.where(masks.any(axis=(1, 2)), evidence, 0.0)
    for _ in range(most):
        start = int(shown.argmax()) if len(shown) else 0
        if not (shown[start : start + 1] > 0).any():
            return
        found = _followed(left, start, config)
        yield found, float(shown[start])
        left &= ~found
        shown = np.where(found.any(axis=(1, 2)) | ~left.any(axis=(1, 2)), 0.0, shown)


def object_at(masks: np.ndarray, place: np.ndarray, config: EndsConfig) -> np.ndarray:
    """The object among masks (n, S, S) at a ``place`` (n, S, S), empty without: a mask of the same shape."""
    overlaps = (masks & place).sum(axis=(1, 2))
    start = int(overlaps.argmax())
    if not overlaps[start]:
        return np.zeros_like(masks)
    return _followed(masks, start, config, _pieces_on(masks[start], place[start]))


def _followed(masks: np.ndarray, start: int, config: EndsConfig, piece: np.ndarray | None = None) -> np.ndarray:
    """The object that a ``piece`` of one row belongs to, by default the largest."""
    found = np.zeros_like(masks)
    found[start] = _largest_piece(masks[start]) if piece is None else piece
    for outwards in (range(start + 1, len(masks)), range(start - 1, -1, -1)):
        before = found[start]
        for row in outwards:
            mask = _pieces_on(masks[row], before)
            if not mask.any() or _is_another(mask, before, config):
                break
            found[row] = before = mask
    return found


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces, _ = ndimage.label(mask, structure=_TOUCHING)
    return np.asarray(pieces == np.bincount(pieces[pieces > 0]).argmax())


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
