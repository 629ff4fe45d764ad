"""A simulated annotator on one slice: looks at the truth, clicks where the mask is most wrong.

The truth leaves this module only as clicks and boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ssmsam.ops import components


@dataclass(frozen=True)
class Click:
    """A click in pixels of the slice; ``positive`` when it says "this belongs to the target"."""

    x: int
    y: int
    positive: bool


def first_click(truth: np.ndarray, *, pixel_mm: tuple[float, float] = (1.0, 1.0)) -> Click:
    """The most inner pixel of the largest part of ``truth`` (height, width).

    Raises ValueError for an empty truth: there is nothing to click on.
    """
    if not np.any(truth):
        raise ValueError("the target is not on this slice, so there is no first click")
    click = next_click(truth, np.zeros_like(truth, dtype=bool), pixel_mm=pixel_mm)
    assert click is not None  # the empty mask misses all of a non-empty truth
    return click


def next_click(
    truth: np.ndarray,
    mask: np.ndarray,
    *,
    clicked: Sequence[Click] = (),
    pixel_mm: tuple[float, float] = (1.0, 1.0),
) -> Click | None:
    """The most inner pixel of the largest region where ``mask`` is wrong, or None when no wrong pixel is left.

    Positive where the mask misses the target, negative where it leaks. A region is a set of touching pixels
    with the same kind of error; of two regions of one size the missed one comes first. A pixel that was already
    clicked is not clicked again: the answer is then the next most inner one. Distances are in millimetres by
    ``pixel_mm`` (y, x), and the edge of the slice counts as outside.
    """
    truth, mask = np.asarray(truth) != 0, np.asarray(mask) != 0
    if truth.shape != mask.shape or truth.ndim != 2:
        raise ValueError(f"truth and mask must be one slice (height, width), got {truth.shape} and {mask.shape}")
    free = np.ones_like(truth)
    for click in clicked:
        free[click.y, click.x] = False
    for region, positive in _regions(truth & ~mask, mask & ~truth):
        if (region & free).any():
            y, x = _innermost(region, free, pixel_mm)
            return Click(x=x, y=y, positive=positive)
    return None


def bounding_box(truth: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the target on a slice, both ends inside. Raises ValueError for an empty truth.

    It is tight, but never narrower than two pixels, where the slice has them: nobody draws a box of one.
    """
    rows, columns = np.nonzero(truth)
    if rows.size == 0:
        raise ValueError("the target is not on this slice, so there is no box")
    (y0, y1), (x0, x1) = (_drawn(*ends) for ends in zip((rows, columns), np.shape(truth), strict=True))
    return x0, y0, x1, y1


def click_params(
    index: int, clicks: Sequence[Click], box: tuple[float, float, float, float] | None = None
) -> dict[str, Any]:
    """Clicks and a box on stored slice ``index`` as the parameters of an inference request."""
    points: dict[bool, list[list[int]]] = {True: [], False: []}
    for click in clicks:
        points[click.positive].append([click.x, click.y, index])
    roi = [] if box is None else list(box)
    return {"foreground": points[True], "background": points[False], "roi": roi, "slice": index}


def _drawn(places: np.ndarray, size: int) -> tuple[int, int]:
    """First and last place of the target along an axis of ``size`` pixels, two at least."""
    first, last = int(places.min()), int(places.max())
    if first < last:
        return first, last
    return (first, last + 1) if last + 1 < size else (max(first - 1, 0), last)


def _regions(missed: np.ndarray, leaked: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Connected regions of both kinds of error, largest first, and whether they were missed."""
    found: list[tuple[int, int, np.ndarray, bool]] = []
    for error, positive in ((missed, True), (leaked, False)):
        labels, sizes = components(error)
        found += [(int(sizes[number]), number, labels, positive) for number in range(1, len(sizes))]
    found.sort(key=lambda item: -item[0])  # stable: missed regions stay before leaked ones of the same size
    for _, number, labels, positive in found:
        yield labels == number, positive


def _innermost(region: np.ndarray, free: np.ndarray, pixel_mm: tuple[float, float]) -> tuple[int, int]:
    inner = ndimage.distance_transform_edt(np.pad(region, 1), sampling=pixel_mm)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(np.where(free, inner, 0.0))), region.shape)
    return int(y), int(x)
