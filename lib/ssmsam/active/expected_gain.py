"""The expected error reduction of one more annotated slice.

Four further constants (how much of the neighbours' errors is corrected, what is wrong though the model is sure of it,
how far organs go on unseen and how large they are there) were left out: together they changed the Dice after two to six
slices by 0.0 points (95 % interval -0.6 to 0.7) on training patients (``chaos_t2_mr`` 08, 10, 13, 15, 19; ``small``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssmsam.active.volume_state import Forecast, VolumeState, numbers_of

_SURE = 0.98
"""No claim of presence counts for more: a *guess*."""
ALIKE_MM = 20.0
"""Slices within this distance look alike: what a model claims of them counts once. A *guess*: 10 changed the Dice after
two to six slices by 0.0 points (95 % interval -0.2 to 0.2) on training patients (``chaos_t2_mr`` 01, 02, 03, 05, 08;
``small``), 40 by 1.1 (-0.2 to 3.1), nearly all of it in one organ."""


@dataclass(frozen=True, eq=False)
class End:
    """One end of an organ: ``rows`` (m,) of a forecast, outwards from a slice on which the organ was seen up to the
    next on which it was not, and ``chances`` (m + 1,) that exactly the first 0, 1, ... m of them show it."""

    rows: np.ndarray
    chances: np.ndarray

    @property
    def presence(self) -> np.ndarray:
        """(m,) the probability that each of the slices shows the organ; it falls outwards."""
        return 1 - np.cumsum(self.chances)[:-1]

    @property
    def likeliest(self) -> int:
        """The row that is as likely as not the last one with the organ, or the first row where that is none of them."""
        return int(self.rows[max(0, _median(self.chances) - 1)])

    @classmethod
    def claimed(cls, rows: np.ndarray, presence: np.ndarray, steps_mm: np.ndarray) -> End:
        """From what a model claims of the slices (m,), one by one; ``steps_mm`` (m,) to each from the one before."""
        odds = np.log(np.clip(presence, 1 - _SURE, _SURE) / np.clip(1 - presence, 1 - _SURE, _SURE))
        steps = np.minimum(1, steps_mm / ALIKE_MM) * odds
        evidence = np.concatenate([[0.0], np.cumsum(steps)])
        chances = np.exp(evidence - evidence.max())
        return cls(rows, chances / chances.sum())

    @classmethod
    def read_off(cls, rows: np.ndarray, presence: np.ndarray) -> End:
        """From probabilities (m,) that the slices show the organ: it ends where they fall."""
        there = np.concatenate([[1.0], np.clip(np.minimum.accumulate(presence), 0, 1), [0.0]])
        return cls(rows, -np.diff(there))

    def error(self, area: np.ndarray, looked: frozenset[int] = frozenset()) -> float:
        """mm2 expected to be wrong here with the organ cut off at the best guess, once ``looked`` rows are known.

        ``area`` (m,) is that of the organ on each slice, if it is there.
        """
        inner = np.concatenate([[0.0], np.cumsum(area)])
        cuts = [number + 1 for number, row in enumerate(self.rows.tolist()) if row in looked]
        return sum(
            _guessed(self.chances[low:high], inner[low:high]) for low, high in pairwise([0, *cuts, len(self.chances)])
        )


def _guessed(chances: np.ndarray, values: np.ndarray) -> float:
    """The expected distance of rising ``values`` from their median, not divided by the sum of the chances."""
    return float((chances * np.abs(values - values[_median(chances)])).sum())


def _median(chances: np.ndarray) -> int:
    """The place up to which half of the chances lie."""
    upto = np.cumsum(chances)
    return int(np.searchsorted(upto, upto[-1] / 2))


def open_ends(slices: np.ndarray, known: Mapping[int, bool]) -> Iterator[tuple[int, np.ndarray]]:
    """Each stretch in which the organ must end: a slice on which it was seen, and the rows (m,) from there up to the
    next slice that does not show it, or out of the volume."""
    for (low, before), (high, after) in pairwise(_edges(known)):
        if before != after:
            rows = np.flatnonzero((slices > low) & (slices < high))
            yield (int(low), rows) if before else (int(high), rows[::-1])


def presence_given(presence: np.ndarray, slices: np.ndarray, known: Mapping[int, bool], slice_mm: float) -> np.ndarray:
    """(n,) the probability that the organ is on each of the ``slices`` (n,), given ``known``: slice -> seen or not.

    An organ has no gaps: it is between two slices that show it, it ends once towards a slice that does not, and it is
    not between two of those. ``presence`` (n,) is what a model claims, and stays where the organ was not seen at all.
    """
    found = presence.copy()
    if any(known.values()):
        found[:] = 0.0
        for (low, before), (high, after) in pairwise(_edges(known)):
            found[(slices > low) & (slices < high)] = float(before and after)
        for seen_on, rows in open_ends(slices, known):
            steps = np.abs(np.diff(slices[rows], prepend=seen_on)) * slice_mm
            found[rows] = End.claimed(rows, presence[rows], steps).presence
    for index, seen in known.items():
        found[slices == index] = float(seen)
    return found


def _edges(known: Mapping[int, bool]) -> list[tuple[float, bool]]:
    """The slices that somebody looked at, between two beyond the volume that surely do not show the organ."""
    return [(-np.inf, False), *sorted(known.items()), (np.inf, False)]


REACH_MM = 25.0
"""Errors grow with the distance to the nearest annotated slice, and less and less from this distance on: a *guess*. On
training patients (``chaos_t2_mr`` 01, 02, 03, 05, 08; ``small``) 12 changed the Dice after two to six slices by 0.0
points (95 % interval 0.0 to 0.0), 50 by -0.1 (-0.4 to 0.0)."""
WORTHWHILE = 0.5
"""A slice chosen for one label is annotated for another too from this share of that one's best gain on: a *guess*."""


class Gains:
    """The expected gains of one label's slices, which fall as slices are taken.

    A slice gains the error expected in its outline, that part of its neighbours' which it brings closer to an annotated
    slice, and what it tells of where the organ ends: an end is looked for where both answers leave little uncertain.
    Whoever is asked for an end leafs there and draws the last slice that shows the organ: that mends all that is
    expected to be wrong at this end, whatever the model believes of the slices there. All in shares of the organ's
    volume: small organs count as much as large ones.
    """

    def __init__(self, state: VolumeState, label: str) -> None:
        self._state, self._label = state, label
        self._forecast = found = state.forecasts[label]
        mm = found.slices * state.slice_mm
        self._away = np.abs(mm[:, None] - mm[None])
        known = state.slice_mm * np.array(state.showing(label), dtype=float)
        self._nearest = np.abs(mm[:, None] - known[None]).min(axis=1, initial=np.inf)
        self._organ = max(float(found.area.sum()), float(found.error.mean()), 1e-6)
        self._open = ~np.isin(found.slices, list(state.known(label)))
        self._left = found.presence * outlines(found) * self._open
        self._ends = ends_of(found, state, label)
        self._taken: frozenset[int] = frozenset()
        self._weigh()

    def values(self) -> np.ndarray:
        """(n,) the gain of each slice of the forecast now, below 0 where it is annotated or taken."""
        return self._values

    def _weigh(self) -> None:
        self._end_gain = self._end_gains()
        gains = (self._left @ self._corrected_shares() + self._end_gain) / self._organ
        self._values = np.where(self._open, gains, -1.0)

    def _growth(self, away: np.ndarray) -> np.ndarray:
        """In [0, 1]: how far errors have grown at a distance in mm from the nearest slice that shows the label."""
        return np.asarray(1 - np.exp(-away / REACH_MM))

    def _corrected_shares(self) -> np.ndarray:
        """(n, n) the share of each slice's errors that annotating each slice corrects: all of its own."""
        before = np.maximum(self._growth(self._nearest), 1e-6)[:, None]
        after = self._growth(np.minimum(self._nearest[:, None], self._away))
        return np.asarray(1 - np.minimum(after / before, 1))

    def _end_gains(self) -> np.ndarray:
        """(n,) mm2 by which the error at the organ's ends is expected to fall when a slice is looked at."""
        found = np.zeros(len(self._open))
        for end in self._ends:
            area = self._forecast.area_if_there[end.rows]
            now = end.error(area, self._taken)
            for row in end.rows.tolist():
                found[row] = now - end.error(area, self._taken | {row})
        return found

    def best(self) -> int | None:
        """The slice with the highest gain; None when all are annotated or taken."""
        return int(self._forecast.slices[self.values().argmax()]) if self._open.any() else None

    @property
    def highest(self) -> float:
        """The gain of the best slice or end."""
        return max(float(self.values().max()), self._open_end()[1])

    def take_best(self) -> tuple[int, dict[str, float | None]]:
        """Count the slice with the highest gain as annotated, or an end as known where more is expected of that: the
        slice, and the numbers that spoke for it. Of an end it is the likeliest last one that shows the organ, and among
        the numbers is ``find_end``."""
        end, gain = self._open_end()
        if end is None or gain <= float(self.values().max()):
            index = self.best()
            assert index is not None
            return index, self.take(index)
        row = end.likeliest
        numbers = numbers_of(self._forecast, row, self._state, self._label)
        self._ends.remove(end)
        self._open[row] = False
        self._weigh()
        return int(self._forecast.slices[row]), {**numbers, "gain": round(gain, 5), "find_end": 1.0}

    def _open_end(self) -> tuple[End | None, float]:
        """The end of which most is expected to be wrong, and the gain of knowing it; none before the organ was seen."""
        ends = [end for end in self._ends if len(end.rows)] if self._state.showing(self._label) else []
        return max(((end, self._error_of(end)) for end in ends), key=lambda one: one[1], default=(None, 0.0))

    def is_worthwhile(self, index: int) -> bool:
        """Whether a slice that is opened anyway should be annotated for this label too."""
        rows = np.flatnonzero((self._forecast.slices == index) & self._open)
        return bool(len(rows)) and bool(self.values()[rows[0]] >= WORTHWHILE * self.highest)

    def _error_of(self, end: End) -> float:
        """What is expected to be wrong at an end, as a share of the organ."""
        return end.error(self._forecast.area_if_there[end.rows], self._taken) / self._organ

    def take(self, index: int) -> dict[str, float | None]:
        """Count a slice as annotated; the numbers that spoke for it."""
        row = int(np.flatnonzero(self._forecast.slices == index)[0])
        gain = float(self.values()[row])
        numbers = {
            **numbers_of(self._forecast, row, self._state, self._label),
            "gain": round(gain, 5),
            "near_end": float(self._end_gain[row] > 0.5 * gain * self._organ),
        }
        self._left = self._left * (1 - self._corrected_shares()[:, row])
        self._nearest = np.minimum(self._nearest, self._away[row])
        self._open[row] = False
        self._taken |= {row}
        self._weigh()
        return numbers


def outlines(forecast: Forecast) -> np.ndarray:
    """(n,) mm2 that are expected to be wrong along the outline, where the label is.

    Where it may be and nothing is drawn, as much of its area as elsewhere: that it was missed is in question at an end.
    """
    drawn, certain = forecast.area > 0, forecast.presence >= 1
    area = float(forecast.area_if_there[drawn].sum())
    share = float(forecast.outline[drawn].sum()) / area if area > 0 else 1.0
    return np.where(drawn | certain, forecast.outline, min(share, 1.0) * forecast.area_if_there)


def ends_of(forecast: Forecast, state: VolumeState, label: str) -> list[End]:
    """Where the organ may end. Where nobody saw it in this volume, outwards from the middle of where it is proposed."""
    known = dict(state.annotated.get(label, {}))
    if not any(known.values()):
        run = main_run(forecast, state, label)
        if not run:
            return []
        known[run[len(run) // 2]] = True
    return [End.read_off(rows, forecast.presence[rows]) for _, rows in open_ends(forecast.slices, known)]


def main_run(forecast: Forecast, state: VolumeState, label: str) -> Sequence[int]:
    """The slices of the organ: neighbours on which it is drawn or was seen, from the largest such group; ascending."""
    annotated = state.annotated.get(label, {})
    there = [annotated.get(int(index), area > 0) for index, area in zip(forecast.slices, forecast.area, strict=True)]
    groups: list[list[int]] = [[]]
    for row, shows in enumerate(there):
        if shows:
            groups[-1].append(row)
        elif groups[-1]:
            groups.append([])
    best = max(groups, key=lambda rows: float(forecast.area[rows].sum()) if rows else -1.0)
    return [int(forecast.slices[row]) for row in best]
