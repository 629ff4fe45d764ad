"""The run of slices of an object that is most likely the target.

What looks like the target and lies against it becomes one object with it: a left kidney goes on into the spleen. Where
it is much too long for what was labelled elsewhere, it is cut where its mask changes most and is least sure. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmsam.fewshot.expectation import Expectation

_MOST_ODDS = 2.0
"""No slice says more than this, as a logarithm, for or against the target."""


@dataclass(frozen=True)
class PartConfig:
    """What a run of slices is judged by.

    ``length`` and ``along_mm`` are the standard deviations of the logarithm of its length and of where its middle lies,
    about what is expected; organs of two patients differ so much in length. Slices within ``evidence_mm`` say no more
    than one independent slice would. ``change`` is what it is worth, as a logarithm, that the object's mask changes
    wholly where the run begins, or ends.
    """

    length: float = 0.2
    along_mm: float = 50.0
    evidence_mm: float = 250.0
    change: float = 1.5


def likely_part(
    found: np.ndarray, sureness: np.ndarray, positions: np.ndarray, expectation: Expectation, config: PartConfig
) -> np.ndarray:
    """An object (n, S, S) without the slices that are not likely the target's: a mask of the same shape.

    ``sureness`` (n,) in [0, 1] is what speaks for the target on each slice and ``positions`` (n,) are in mm. An object
    of which no length is expected stays as it is.
    """
    rows = np.flatnonzero(found.any(axis=(1, 2)))
    if len(rows) < 3 or not expectation.length_mm:
        return found
    first, last = rows[0], rows[-1] + 1
    start, stop = _best_run(found[first:last], sureness[first:last], positions[first:last], expectation, config)
    part = np.zeros_like(found)
    part[first + start : first + stop] = found[first + start : first + stop]
    return part


def _best_run(
    masks: np.ndarray, sureness: np.ndarray, positions: np.ndarray, expectation: Expectation, config: PartConfig
) -> tuple[int, int]:
    """First row and the row after the last of the best run of n."""
    count = len(masks)
    slice_mm = float(np.abs(np.diff(positions)).mean())
    start, stop = np.arange(count)[:, None], np.arange(1, count + 1)[None]
    sure = np.clip(sureness, 1e-3, 1 - 1e-3)
    odds = np.clip(np.log(sure / (1 - sure)), -_MOST_ODDS, _MOST_ODDS)
    told = np.concatenate([[0.0], np.cumsum(odds)]) * slice_mm / config.evidence_mm
    changes = _changes(masks)
    worth = 2 * (told[stop] - told[start]) + config.change * (changes[start] + changes[stop])
    length = np.maximum(stop - start, 1) * slice_mm
    worth = worth - 0.5 * (np.log(length / expectation.length_mm) / config.length) ** 2
    middle = (positions[start] + positions[stop - 1]) / 2
    for there in expectation.middles_mm:
        worth = worth - 0.5 * ((middle - there) / config.along_mm) ** 2 / len(expectation.middles_mm)
    best = int(np.where(stop > start, worth, -np.inf).argmax())
    return best // count, best % count + 1


def _changes(masks: np.ndarray) -> np.ndarray:
    """How much the mask changes before each of n slices and after the last, (n + 1,) in [0, 1]: 1 at both ends."""
    both = (masks[1:] & masks[:-1]).sum(axis=(1, 2))
    either = np.maximum((masks[1:] | masks[:-1]).sum(axis=(1, 2)), 1)
    return np.concatenate([[1.0], 1 - both / either, [1.0]])
