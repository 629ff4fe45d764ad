"""Why a slice was chosen: in numbers, and in the words of a radiologist."""

from __future__ import annotations

from collections.abc import Mapping

from ssmsam.active.state import Forecast, VolumeState

FAR_MM = 15.0
"""From here on a slice counts as far from the annotated ones."""


def in_words(index: int, label: str, numbers: Mapping[str, float | None]) -> str:
    """One sentence on why a slice was chosen for a label, the weightiest reasons first."""
    presence, dice = numbers.get("presence"), numbers.get("expected_dice")
    away = numbers.get("distance_mm")
    reasons = []
    if numbers.get("near_end"):
        reasons.append(f"{label} seems to end near it, which no other slice can show")
    if presence is not None and 0.25 <= presence <= 0.75:
        reasons.append(f"it is unclear whether {label} is there ({presence:.0%})")
    elif dice is not None and dice < 0.8:
        reasons.append(f"the outline of {label} is doubtful there (expected Dice {dice:.2f})")
    if away is None:
        reasons.append("nothing is annotated in this volume yet")
    elif away >= FAR_MM:
        reasons.append(f"it is {away:.0f} mm from the nearest annotated slice")
    if not reasons:
        reasons.append(f"{label} still has most to gain there")
    return f"slice {index}: {'; '.join(reasons)}"


def end_question(index: int, label: str) -> str:
    """What a person is asked of a slice just past an annotated end."""
    return f"slice {index}: is there still {label}?"


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
