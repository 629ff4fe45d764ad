"""Shapes as signed distances: negative inside, in millimetres, exact enough near the surface."""

from __future__ import annotations

from collections.abc import Sequence

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


Point = Sequence[float | np.ndarray]

FAR_MM = 1000.0
"""Distance given to voxels so far from a shape that nobody asks."""

MARGIN_MM = 25.0
"""How far around a shape its distance is computed; more than any seam or wall needs."""


class Space:
    """A grid in patient millimetres, bent by smooth random fields, and the tissue painted on it so far."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
    ) -> None:
        self.rng = rng
        self.shape = shape
        self.spacing_mm = spacing_mm
        self.tissue = np.zeros(shape, np.uint8)
        axes = [((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n, mm in zip(shape, spacing_mm, strict=True)]
        self.axes = axes
        z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
        bends = [amount * self.field(95) + 1.5 * self.field(40) for amount in (6, 5, 5)]
        self.bend_mm = max(float(np.abs(bend).max()) for bend in bends)
        self.z, self.y, self.x = z + bends[0], y + bends[1], x + bends[2]
        lordosis = self.vary(7, 3)
        self.back = self.vary(38, 3)
        self.spine = self.back - lordosis / (1 + ((self.z + 70) / 60) ** 2)
        """y of the middle of the vertebral bodies at every voxel; about ``back`` high up, less in the loins."""

    def vary(self, value: float, spread: float) -> float:
        """A number within ``spread`` of ``value``: what makes patients differ."""
        return float(self.rng.uniform(value - spread, value + spread))

    def field(self, scale_mm: float) -> np.ndarray:
        """A fresh smooth random field over the grid, standard deviation 1."""
        return smooth_field(self.rng, self.shape, self.spacing_mm, scale_mm)

    def paint(self, tissue: int, inside: np.ndarray, *, over: int | None = None) -> None:
        """Fill voxels where ``inside``, only those that are ``over`` now when given."""
        np.putmask(self.tissue, inside if over is None else inside & (self.tissue == over), tissue)

    def is_any(self, *tissues: int) -> np.ndarray:
        """Where the tissue is one of these."""
        return np.isin(self.tissue, tissues)

    def around(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice, slice]:
        """The part of the grid that holds a box from ``low`` to ``high`` (x, y, z) mm and a margin, bent or not."""
        reach = self.bend_mm + MARGIN_MM
        spans = zip(self.axes, low[::-1], high[::-1], strict=True)
        z, y, x = (slice(*np.searchsorted(axis, (a - reach, b + reach)).tolist()) for axis, a, b in spans)
        return z, y, x

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, ...]:
        """Array index of the voxels nearest to points (N, 3) as (x, y, z) mm, before bending; clipped to the grid."""
        zyx = points[:, ::-1] / self.spacing_mm + (np.array(self.shape) - 1) / 2
        return tuple(np.clip(np.rint(zyx).astype(int), 0, np.array(self.shape) - 1).T)


def ellipsoid(s: Space, centre: Point, radii: Sequence[float], *, lean: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Signed distance to an ellipsoid; ``lean`` moves it in x and y per millimetre of height."""
    reach = (radii[0] + abs(lean[0]) * radii[2], radii[1] + abs(lean[1]) * radii[2], radii[2])
    low = [float(np.min(c)) - r for c, r in zip(centre, reach, strict=True)]
    high = [float(np.max(c)) + r for c, r in zip(centre, reach, strict=True)]
    part = s.around(low, high)
    cx, cy, cz = _cropped(centre, part)
    z = s.z[part] - cz
    x = (s.x[part] - cx + lean[0] * z) / radii[0]
    y = (s.y[part] - cy + lean[1] * z) / radii[1]
    distance = np.full(s.shape, FAR_MM, np.float32)
    distance[part] = (np.sqrt(x**2 + y**2 + (z / radii[2]) ** 2) - 1) * min(radii)
    return distance


def tube(s: Space, course: Sequence[Point], radii: Sequence[float]) -> np.ndarray:
    """Signed distance to a tube along the points of ``course`` with a radius at each. y may change with height."""
    distance = np.full(s.shape, FAR_MM, np.float32)
    for n in range(len(course) - 1):
        low = [min(float(np.min(a)), float(np.min(b))) - max(radii) for a, b in zip(*course[n : n + 2], strict=True)]
        high = [max(float(np.max(a)), float(np.max(b))) + max(radii) for a, b in zip(*course[n : n + 2], strict=True)]
        part = s.around(low, high)
        start, end = _cropped(course[n], part), _cropped(course[n + 1], part)
        along = [b - a for a, b in zip(start, end, strict=True)]
        offset = [p - a for p, a in zip((s.x[part], s.y[part], s.z[part]), start, strict=True)]
        share = sum(o * a for o, a in zip(offset, along, strict=True)) / sum(a * a for a in along)
        share = np.clip(share, 0, 1)
        away = [o - share * a for o, a in zip(offset, along, strict=True)]
        here = np.sqrt(sum(a * a for a in away)) - (radii[n] + share * (radii[n + 1] - radii[n]))
        distance[part] = np.minimum(distance[part], here)
    return distance


def _cropped(point: Point, part: tuple[slice, slice, slice]) -> list[float | np.ndarray]:
    return [value[part] if isinstance(value, np.ndarray) else value for value in point]


def join(a: np.ndarray, b: np.ndarray, soft_mm: float) -> np.ndarray:
    """Union of two shapes with a seam rounded over ``soft_mm``."""
    overlap = np.clip(soft_mm - np.abs(a - b), 0, None) / soft_mm
    return np.minimum(a, b) - overlap**2 * (soft_mm / 4)


def meet(a: np.ndarray, b: np.ndarray, soft_mm: float) -> np.ndarray:
    """Intersection of two shapes with an edge rounded over ``soft_mm``."""
    return -join(-a, -b, soft_mm)
