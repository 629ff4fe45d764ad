"""Colours that tell segments apart on a screen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np
from skimage.color import rgb2lab

RGB = tuple[int, int, int]

APART = 12.0
"""Distance in CIELab from which two colours are taken for different ones at a glance."""


def distinct_colours(wanted: Sequence[RGB | None]) -> list[RGB]:
    """One sRGB colour (0 to 255) for each of ``wanted``, no two alike.

    The first to want a colour gets it; a later one that is too near gets the nearest that is free. None gets the one
    farthest from all others. The same wishes give the same colours.
    """
    given: dict[int, RGB] = {}
    rgb, lab = _palette()
    gaps = np.full(len(lab), np.inf)  # from every colour of the palette to the nearest one given
    for index, preferred in sorted(enumerate(wanted), key=lambda pair: pair[1] is None):
        if preferred is None or not _is_free(preferred, given.values()):
            preferred = _triple(rgb[_nearest_free(preferred, lab, gaps)])
        given[index] = preferred
        np.minimum(gaps, np.linalg.norm(lab - cielab(preferred), axis=1), out=gaps)
    return [given[index] for index in range(len(wanted))]


def cielab(colour: RGB | np.ndarray) -> np.ndarray:
    """sRGB (..., 3) of 0 to 255 -> CIELab (..., 3) under D65, the white that viewers assume when they turn it back."""
    return rgb2lab(np.asarray(colour, dtype=np.float64) / 255)


@cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Clear colours, neither dark nor pale nor grey: (N, 3) sRGB and (N, 3) CIELab."""
    levels = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cielab(rgb)
    clear = (lab[:, 0] > 35) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 20)
    return rgb[clear], lab[clear]


def _is_free(preferred: RGB, given: Collection[RGB]) -> bool:
    if not given:
        return True
    return bool(np.linalg.norm(cielab(np.array(list(given))) - cielab(preferred), axis=1).min() >= APART)


def _nearest_free(preferred: RGB | None, lab: np.ndarray, gaps: np.ndarray) -> int:
    """Index into the palette: nearest to the preferred among the free ones, else the farthest from all given."""
    free = np.flatnonzero(gaps >= APART)
    if preferred is None or not len(free):
        return int(gaps.argmax())
    return int(free[np.linalg.norm(lab[free] - cielab(preferred), axis=1).argmin()])


def _triple(rgb: np.ndarray) -> RGB:
    red, green, blue = (int(value) for value in rgb)
    return red, green, blue
