"""Objects among the masks of a volume: pieces of slices that go on from one slice to the next."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_TOUCHING = np.ones((3, 3))


def objects(masks: np.ndarray, evidence: np.ndarray, anchors: np.ndarray, *, most: int) -> list[np.ndarray]:
    """At most ``most`` objects among masks (n, S, S), each a mask of the same shape; they may share pieces.

    The first is what hangs together with the ``anchors`` (n, S, S), masks that are known to be the target, if there are
    any. The others begin with the largest piece on the slice with most ``evidence`` (n,) that no object has yet.
    Outwards from where it begins, an object has on every slice the pieces that overlap with it on the slice before.
    """
    found: list[np.ndarray] = []
    left, shown = masks.copy(), np.where(masks.any(axis=(1, 2)), evidence, 0.0)
    anchored = anchors.any(axis=(1, 2))
    if anchored.any():
        found.append(_grown(masks, anchors))
        left &= ~found[0]
        shown = np.where(left.any(axis=(1, 2)), shown, 0.0)
    while len(found) < most and len(shown) and shown.max() > 0:
        start = int(shown.argmax())
        one = np.zeros_like(masks)
        one[start] = _largest_piece(left[start])
        one = _followed(masks, one, start)
        found.append(one)
        left &= ~one
        shown = np.where(one.any(axis=(1, 2)) | ~left.any(axis=(1, 2)), 0.0, shown)
    return found


def _grown(masks: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """What hangs together with anchors: between them in both directions, beyond them outwards."""
    found = np.zeros_like(masks)
    for row in np.flatnonzero(anchors.any(axis=(1, 2))):
        found[row] = anchors[row] | _pieces_on(masks[row], anchors[row])
    for order in (range(1, len(masks)), range(len(masks) - 2, -1, -1)):
        step = 1 if order.step > 0 else -1
        for row in order:
            found[row] |= _pieces_on(masks[row], found[row - step])
    return found


def _followed(masks: np.ndarray, found: np.ndarray, start: int) -> np.ndarray:
    """An object that begins on one row, on all the others."""
    for outwards, step in ((range(start + 1, len(masks)), 1), (range(start - 1, -1, -1), -1)):
        for row in outwards:
            found[row] = _pieces_on(masks[row], found[row - step])
            if not found[row].any():
                break
    return found


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces, _ = ndimage.label(mask, structure=_TOUCHING)
    return np.asarray(pieces == np.bincount(pieces[pieces > 0]).argmax())


def _pieces_on(mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The pieces of a mask (S, S) that overlap with another."""
    if not (mask & before).any():
        return np.zeros_like(mask)
    pieces, _ = ndimage.label(mask, structure=_TOUCHING)
    return np.isin(pieces, np.unique(pieces[mask & before]))
