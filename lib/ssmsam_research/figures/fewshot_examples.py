"""Pictures of the best, the median and the worst case of every organ, from the slices that a run kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.cli.pictures import Panel, draw_overlays
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import Scale, recipe_for
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.protocols.clicks import Record
from ssmsam_research.protocols.episode import kept_mask

PLACES = {"best": 1.0, "median": 0.5, "worst": 0.0}
_MARGIN_MM = 25.0


def draw_examples(folder: Path, result: dict[str, Any], queries: LabelledSet) -> list[Path]:
    """One PNG for each method, a row for each organ, of the headline's setting. Returns the files.

    None for methods whose records keep no slice, as those of older results. Raises ValueError when ``queries`` lack a
    case of the result.
    """
    setting, drawn = result["settings"]["headline"].split(" / ")[1], []
    for method in result["methods"]:
        chosen = list(examples(result, method, setting))
        if any("kept" not in record for _, record in chosen):
            continue
        path = folder / f"{result['protocol']}_examples_{method}.png"
        title = (
            f"{queries.name}, {method}, {setting}: the slice with most wrong pixels\nfilled the mask, dashed the truth"
        )
        panels = [_panel(place, record, queries) for place, record in chosen]
        drawn.append(draw_overlays(path, panels, columns=len(PLACES), side=2.4, title=title))
    return drawn


def examples(result: dict[str, Any], method: str, setting: str) -> Iterator[tuple[str, Record]]:
    """(place, record with its case) for every label: its best, median and worst record by the first score."""
    records = [
        {"case": case["case"], **record}
        for case in result["per_case"]
        for record in case["methods"][method]
        if record["setting"] == setting
    ]
    for label in dict.fromkeys(record["label"] for record in records):
        ranked = sorted((one for one in records if one["label"] == label), key=_dice)
        for place, share in PLACES.items():
            yield place, ranked[round(share * (len(ranked) - 1))]


def _dice(record: Record) -> float:
    return next(iter(record["dice"].values()))


def _panel(place: str, record: Record, queries: LabelledSet) -> Panel:
    case = next((case for case in queries.cases if case.name == record["case"]), None)
    if case is None:
        raise ValueError(f"{queries.name} has no case {record['case']}, which the result is about")
    volume, labels, scale = _opened(case)
    index = record["kept"]["slice"]
    truth = dict(queries.targets(labels))[record["label"]][index]
    mask = kept_mask(record["kept"], truth.shape)
    pixel_mm = Plane(0).pixel_mm(volume.grid)
    rows, columns = _window(mask | truth, pixel_mm)
    shown = as_viewed(volume)
    return Panel(
        f"{place}: {record['label']}, {case.name}, slice {index}\nDice of the case {_dice(record):.1f} %",
        scale.apply(volume.array[index][rows, columns])[shown],
        mask[rows, columns][shown],
        truth=truth[rows, columns][shown],
        pixel_mm=pixel_mm,
    )


@lru_cache(maxsize=4)
def _opened(case: Case) -> tuple[Volume, np.ndarray, Scale]:
    volume, labels = case.read()
    return volume, labels, recipe_for(volume).scale(volume)


def as_viewed(volume: Volume) -> tuple[slice, slice]:
    """Rows and columns as viewers show them: the patient's front or head above, the right side at the left."""
    _, y, x = Plane(0).mirrored(volume.grid)  # against the way that encoders are shown, with the front below
    return slice(None, None, 1 if y else -1), slice(None, None, -1 if x else 1)


def _window(shown: np.ndarray, pixel_mm: tuple[float, float]) -> tuple[slice, slice]:
    """A square in mm round what is shown, with a margin, so that small organs can be seen; all of an empty slice."""
    if not shown.any():
        return slice(None), slice(None)
    places = [np.flatnonzero(shown.any(axis=1 - axis)) for axis in (0, 1)]
    side_mm = max((found[-1] - found[0] + 1) * mm for found, mm in zip(places, pixel_mm, strict=True)) + 2 * _MARGIN_MM
    window = []
    for found, mm in zip(places, pixel_mm, strict=True):
        low = int((found[0] + found[-1] + 1) / 2 - side_mm / mm / 2)
        window.append(slice(max(0, low), low + round(side_mm / mm)))
    return window[0], window[1]
