"""Smooth random fields in millimetres: the same field whatever grid it is sampled on."""

from __future__ import annotations

import numpy as np

UNIT_SPREAD = (151 / 315) ** 1.5
"""Standard deviation that cubic B-splines leave of unit noise in three dimensions."""


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], scale_mm: float
) -> np.ndarray:
    """A random field of ``shape``, float32, mean about 0 and standard deviation about 1, with bumps ``scale_mm`` apart.

    Sampling the same extent more finely gives the same field, only finer. Computed in double precision, so that
    processors that round their last bits differently still agree after the voxels are rounded to integers.
    """
    cells = [int(np.ceil(n * mm / scale_mm)) + 4 for n, mm in zip(shape, spacing_mm, strict=True)]
    values = rng.standard_normal(cells) / UNIT_SPREAD
    for axis, (n, mm) in enumerate(zip(shape, spacing_mm, strict=True)):
        weights = _spline_weights(n, mm / scale_mm, cells[axis])
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(values, dtype=np.float32)


def _spline_weights(count: int, step: float, cells: int) -> np.ndarray:
    """(count, cells) weights of cubic B-splines at positions 1 + (n + 1/2) * step."""
    position = 1 + (np.arange(count) + 0.5) * step
    distance = np.abs(position[:, None] - np.arange(cells))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)
