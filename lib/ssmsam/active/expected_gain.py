"""How much of what is expected to be wrong in a volume one more annotated slice would mend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssmsam.active.reasons import numbers_of
from ssmsam.active.state import Forecast, VolumeState


@dataclass(frozen=True)
class GainConfig:
    """How errors are weighed and how far an annotation reaches."""

    reach_mm: float = 10.0
    """Distance at which an annotated slice still mends 1/e of the errors."""
    unforeseen: float = 0.05
    """Share of a proposed mask that is taken to be wrong although the model is sure of it."""
    end: float = 0.5
    """Share of the organ's mean area that is taken to be wrong where it seems to end but nobody has looked."""
    blur: float = 0.2
    """How well an end is foreseen: standard deviation as a share of the stretch in which it must lie."""
    worthwhile: float = 0.5
    """A slice chosen for one label is asked for another too from this share of that one's best gain on."""


class Gains:
    """The expected gains of one label's slices, which fall as slices are taken.

    A slice gains the error expected on it and, less and less, on its neighbours. What the model cannot foresee is
    taken to be less near annotated slices. In shares of the organ's volume: small organs count as much as large ones.
    """

    def __init__(self, state: VolumeState, label: str, config: GainConfig) -> None:
        self._state, self._label, self._config = state, label, config
        self._forecast = state.forecasts[label]
        self._at_end = end_errors(self._forecast, state, label, config)
        slices = self._forecast.slices
        mm = slices * state.slice_mm
        self._mends = np.exp(-np.abs(mm[:, None] - mm[None]) / config.reach_mm)
        unseen = config.unforeseen * self._forecast.area + self._at_end
        for index in state.known(label):
            unseen = unseen * (1 - np.exp(-np.abs(mm - index * state.slice_mm) / config.reach_mm))
        organ = max(float(self._forecast.area.sum()), float(self._forecast.error.mean()), 1e-6)
        self._open = ~np.isin(slices, list(state.known(label)))
        self._left = (self._forecast.error + unseen) / organ * self._open

    def values(self) -> np.ndarray:
        """(n,) the gain of each slice of the forecast now, below 0 where it is annotated or taken."""
        return np.where(self._open, self._mends @ self._left, -1.0)

    def best(self) -> int | None:
        """The slice with the highest gain; None when all are annotated or taken."""
        return int(self._forecast.slices[self.values().argmax()]) if self._open.any() else None

    @property
    def highest(self) -> float:
        """The gain of the best slice."""
        return float(self.values().max())

    def is_worthwhile(self, index: int) -> bool:
        """Whether a slice that is opened anyway should be annotated for this label too."""
        rows = np.flatnonzero((self._forecast.slices == index) & self._open)
        return bool(len(rows)) and bool(self.values()[rows[0]] >= self._config.worthwhile * self.highest)

    def take(self, index: int) -> dict[str, float | None]:
        """Count a slice as annotated; the numbers that spoke for it."""
        row = int(np.flatnonzero(self._forecast.slices == index)[0])
        numbers = {
            **numbers_of(self._forecast, row, self._state, self._label),
            "gain": round(float(self.values()[row]), 5),
            "near_end": float(self._at_end[row] > 0.5 * self._at_end.max() > 0),
        }
        self._left = self._left * (1 - self._mends[row])
        self._open[row] = False
        return numbers


def end_errors(forecast: Forecast, state: VolumeState, label: str, config: GainConfig) -> np.ndarray:
    """(n,) mm2 that may be wrong because nobody has looked where the organ ends.

    The organ ends somewhere between the outermost slice on which it was seen and the next one known to be without it,
    most likely where the model says so. No other slice can tell.
    """
    found = np.zeros(len(forecast.slices))
    run = main_run(forecast, state, label)
    if not run:
        return found
    area = float(forecast.area[np.isin(forecast.slices, run)].mean())
    seen = state.showing(label)
    without = sorted(state.known(label) - set(seen))
    for end, inner, beyond in (
        (run[0], seen[:1], [index for index in without if index < run[0]][-1:]),
        (run[-1], seen[-1:], [index for index in without if index > run[-1]][:1]),
    ):
        first = inner[0] if inner else run[len(run) // 2]
        last = beyond[0] if beyond else (-1 if end == run[0] else state.count)
        low, high = min(first, last), max(first, last)
        between = (forecast.slices > low) & (forecast.slices < high)
        spread = max(1.0, config.blur * (high - low))
        shape = np.exp(-(((forecast.slices - end) / spread) ** 2) / 2)
        found = np.maximum(found, np.where(between, config.end * area * shape, 0.0))
    return found


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
