"""Where the body is on a slice: two patients rarely lie at the same place of their images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from ssmsam.ops import components

TISSUE = 0.1
"""Scaled intensities above this may be tissue; air and the image's border are below."""
_THIN = 2
"""Iterations of opening, in pixels: the table and noise are thinner."""
_PART = 0.3
"""Pieces this large, as a share of the largest one, belong to the body."""
_EDGE = 8
"""A row or column of the body holds at least this many of its pixels: ears of the outline do not move the centre."""

_STEP_MM, _REACH_MM = 10.0, 20.0
"""How far apart slices are on which the body is looked for, and over how much to both sides its place is averaged."""


def body_box(image: np.ndarray) -> tuple[float, float, float, float]:
    """The body's bounding box (x0, y0, x1, y1), last pixel included, on a slice (height, width) in [0, 1].

    The body is the large pieces of tissue, two legs say. All of the image where there is none.
    """
    pieces, sizes = components(ndimage.binary_opening(image > TISSUE, iterations=_THIN), corners=False)
    if len(sizes) > 1:
        body = (sizes >= _PART * sizes.max())[pieces]
        rows, columns = (np.flatnonzero(body.sum(axis=axis) >= _EDGE) for axis in (1, 0))
        if len(rows) and len(columns):
            return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])
    height, width = image.shape
    return 0.0, 0.0, width - 1.0, height - 1.0


def body_centre(image: np.ndarray) -> tuple[float, float]:
    """Centre (x, y) of :func:`body_box`."""
    x0, y0, x1, y1 = body_box(image)
    return (x0 + x1) / 2, (y0 + y1) / 2


def body_centres(slice_of: Callable[[int], np.ndarray], count: int, slice_mm: float) -> np.ndarray:
    """Centres (count, 2) as (x, y) on all slices of a volume; ``slice_of(index)`` gives (height, width) in [0, 1].

    Looked for on slices some way apart; running medians, so that an arm on one of them moves nothing; interpolated in
    between.
    """
    looked_at = np.unique([*range(0, count, max(1, round(_STEP_MM / slice_mm))), count - 1])
    found = np.array([body_centre(slice_of(int(index))) for index in looked_at])
    near = np.abs(np.subtract.outer(looked_at, looked_at)) * slice_mm <= _REACH_MM
    steady = np.stack([np.median(found[row], axis=0) for row in near])
    return np.stack([np.interp(np.arange(count), looked_at, steady[:, axis]) for axis in (0, 1)], axis=1)
