"""What a choice of slices may look at: nothing of it holds a pixel's truth beyond what a person annotated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

ANY = ""
"""The label of a choice for whichever label the user draws."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a model expects of one label on the n ``slices`` (n,) of a volume that it looked at, ascending.

    ``presence`` (n,) is the probability that the label is there. In mm2, (n,) each: ``area`` of the proposed mask, and
    what is expected of the label if it is there, ``inside`` of the mask and ``outside``. ``dice`` in [0, 1] is what the
    volume head expects over all slices that nobody annotated.
    """

    slices: np.ndarray
    presence: np.ndarray
    area: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    dice: float

    @property
    def area_if_there(self) -> np.ndarray:
        """(n,) mm2 that the label is expected to have on each slice if it is there."""
        return np.asarray(self.inside + self.outside)

    @property
    def outline(self) -> np.ndarray:
        """(n,) mm2 that are expected to be wrong if the label is there."""
        return np.asarray(self.area - self.inside + self.outside)

    @property
    def expected_area(self) -> np.ndarray:
        """(n,) mm2 that the label is expected to have."""
        return np.asarray(self.presence * self.area_if_there)

    @property
    def error(self) -> np.ndarray:
        """(n,) mm2 that are expected to be wrong."""
        return np.asarray(self.area - self.presence * (self.inside - self.outside))

    @property
    def loss(self) -> np.ndarray:
        """(n,) in [0, 1]: the expected 1 - Dice of each slice, 0 for one that is surely empty."""
        return self.error / np.maximum(self.area + self.expected_area, 1e-6)


@dataclass(frozen=True, eq=False)
class VolumeState:
    """What is known of one volume's slices.

    ``descriptors`` has a unit vector (D,) for every slice that is embedded. ``annotated`` maps label -> slice ->
    whether a person saw the label there. ``forecasts`` are of the labels that a model knows."""

    count: int
    slice_mm: float
    descriptors: Mapping[int, np.ndarray] = field(default_factory=dict)
    annotated: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)

    def known(self, label: str) -> frozenset[int]:
        """The slices that are annotated for a label; for ANY those that are annotated for some label."""
        labels = self.annotated if label == ANY else [label]
        return frozenset(index for name in labels for index in self.annotated.get(name, ()))

    def showing(self, label: str) -> list[int]:
        """The annotated slices on which a label was seen, ascending."""
        return sorted(index for index, seen in self.annotated.get(label, {}).items() if seen)

    def left(self, labels: Iterable[str]) -> list[int]:
        """The slices that are not annotated for at least one of the labels, ascending; ANY when there are none."""
        known = [self.known(label) for label in labels] or [self.known(ANY)]
        return [index for index in range(self.count) if any(index not in slices for slices in known)]


@dataclass(frozen=True)
class Reason:
    """Why a slice was chosen: as numbers, and as a sentence for a person."""

    sentence: str
    numbers: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A slice to annotate next: label -> why. ``gain`` compares choices of one rule, the largest is the best."""

    index: int
    reasons: Mapping[str, Reason]
    gain: float = 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it is wanted for; none for whichever the user draws."""
        return tuple(label for label in self.reasons if label != ANY)


FAR_MM = 15.0
"""From here on a slice counts as far from the annotated ones: a *guess*, of words alone."""
UNCLEAR = (0.25, 0.75)
"""Presence between these is called unclear: a *guess*, of words alone."""
UNCERTAIN_DICE = 0.8
"""An outline of less expected Dice is called uncertain: a *guess*, of words alone."""


def in_words(index: int, label: str, numbers: Mapping[str, float | None]) -> str:
    """One sentence on why a slice was chosen for a label, the weightiest reasons first."""
    presence, dice = numbers.get("presence"), numbers.get("expected_dice")
    away = numbers.get("distance_mm")
    reasons = []
    if numbers.get("find_end"):
        return find_end(index, label)
    if numbers.get("near_end"):
        reasons.append(f"{label} seems to end near it, which no other slice can show")
    if presence is not None and UNCLEAR[0] <= presence <= UNCLEAR[1]:
        reasons.append(f"it is unclear whether {label} is there ({presence:.0%})")
    elif dice is not None and dice < UNCERTAIN_DICE:
        reasons.append(f"the outline of {label} is uncertain there (expected Dice {dice:.2f})")
    if away is None:
        reasons.append("nothing is annotated in this volume yet")
    elif away >= FAR_MM:
        reasons.append(f"it is {away:.0f} mm from the nearest annotated slice")
    if not reasons:
        reasons.append(f"{label} still has most to gain there")
    return f"slice {index}: {'; '.join(reasons)}"


def end_question(index: int, label: str) -> str:
    """The question to a person about a slice just past an annotated end."""
    return f"slice {index}: is there still {label}?"


def find_end(index: int, label: str) -> str:
    """The request to a person to find an end, which seems to be near a slice."""
    return f"slice {index}: {label} seems to end near it: find its last slice, draw it, and mark the next one as empty"


def numbers_of(forecast: Forecast, row: int, state: VolumeState, label: str) -> dict[str, float | None]:
    """What is expected of one slice, as plain numbers."""
    index = int(forecast.slices[row])
    away = min((abs(index - known) for known in state.known(label)), default=None)
    return {
        "presence": round(float(forecast.presence[row]), 3),
        "expected_dice": round(1 - float(forecast.loss[row]), 3) if forecast.area[row] else None,
        "area_mm2": round(float(forecast.area[row]), 1),
        "expected_error_mm2": round(float(forecast.error[row]), 1),
        "distance_mm": None if away is None else round(away * state.slice_mm, 1),
    }
