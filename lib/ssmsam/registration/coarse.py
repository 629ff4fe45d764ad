"""Small copies of volumes on straight grids: what is registered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ssmsam.volume.body import body_box
from ssmsam.volume.intensity import Scale
from ssmsam.volume.volume import Grid, Volume

CELLS_ACROSS = 70
"""At least so many cells lie along the longest side of a slice."""
LARGEST_CELL_MM = 4.0
_MARGIN = 6
"""Cells that are kept around the body."""


@dataclass(frozen=True, eq=False)
class CoarseVolume:
    """``values`` (D, H, W) float32 in [0, 1] on cubes whose axes are the patient's: along them x grows to the left, y
    to posterior, z to superior. ``grid`` says where they are and how large."""

    values: torch.Tensor
    grid: Grid

    @property
    def cell_mm(self) -> float:
        return self.grid.spacing[0]

    @classmethod
    def of(cls, volume: Volume, scale: Scale, *, cell_mm: float | None = None) -> CoarseVolume:
        """A volume's intensities, scaled to [0, 1], 0 outside it. Without ``cell_mm`` it is chosen by the volume."""
        cell_mm = cell_mm_for(volume.grid) if cell_mm is None else cell_mm
        fine = scale.apply(volume.array).astype(np.float32)
        blur = [max(0.0, (cell_mm / spacing - 1) / 2) for spacing in volume.spacing]
        grid = straight_grid(volume.grid, cell_mm)
        smooth = torch.from_numpy(ndimage.gaussian_filter(fine, blur))
        places = volume.grid.to_ijk(grid.to_lps(indices(grid)))
        return _without_air(cls(sampled(smooth[None], places_of(places, grid.shape), outside=0.0)[0], grid))


def typical_box(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The body's first and last (row, column), medians over the slices of (D, H, W) in [0, 1]."""
    x0, y0, x1, y1 = np.median([body_box(one) for one in values.numpy()], axis=0)
    return np.array([y0, x0]), np.array([y1, x1])


def _without_air(volume: CoarseVolume) -> CoarseVolume:
    """The same without most of what lies beside the body: there is nothing to find, but time to lose."""
    low, high = typical_box(volume.values)
    first = np.maximum(low - _MARGIN, 0).astype(int)
    last = np.minimum(high + _MARGIN + 1, volume.values.shape[1:]).astype(int)
    affine = volume.grid.affine.copy()
    affine[:2, 3] += volume.cell_mm * first[::-1]
    values = volume.values[:, first[0] : last[0], first[1] : last[1]].clone()
    return CoarseVolume(values, Grid((values.shape[0], values.shape[1], values.shape[2]), affine))


def cell_mm_for(grid: Grid) -> float:
    """The side of a cell in mm: fine enough for small images, not finer than they are."""
    sides = sorted(n * mm for n, mm in zip(grid.shape, grid.spacing, strict=True))
    return float(max(min(sides[1] / CELLS_ACROSS, LARGEST_CELL_MM), min(grid.spacing)))


def straight_grid(grid: Grid, cell_mm: float) -> Grid:
    """Cubes along the patient's axes that hold all of a grid."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape[::-1]])).reshape(3, -1).T
    places = grid.to_lps(corners)
    low, high = places.min(axis=0), places.max(axis=0)
    x, y, z = (int(n) for n in np.ceil((high - low) / cell_mm - 1e-6) + 1)
    affine = np.diag([cell_mm, cell_mm, cell_mm, 1.0])
    affine[:3, 3] = low
    return Grid((z, y, x), affine)


def indices(grid: Grid) -> np.ndarray:
    """All voxel indices (N, 3) of a grid as (column, row, slice), in the order of its array."""
    k, j, i = np.indices(grid.shape).reshape(3, -1)
    return np.stack([i, j, k], axis=1)


def places_of(ijk: np.ndarray, shape: tuple[int, int, int]) -> torch.Tensor:
    """Indices (N, 3) as (column, row, slice) of N = D x H x W cells -> (3, D, H, W) float32 as (slice, row, column)."""
    return torch.from_numpy(ijk[:, ::-1].T.reshape(3, *shape).astype(np.float32))


def sampled(channels: torch.Tensor, places: torch.Tensor, *, outside: float | None = None) -> torch.Tensor:
    """Channels (C, D, H, W) at fractional indices ``places`` (3, d, h, w), as (slice, row, column): (C, d, h, w),
    trilinear. Beyond the border the border's values, or ``outside``."""
    last = torch.tensor([max(n - 1, 1) for n in channels.shape[1:]], dtype=torch.float32)
    unit = 2 * places / last[:, None, None, None] - 1
    found = F.grid_sample(
        channels[None], unit.flip(0).permute(1, 2, 3, 0)[None], padding_mode="border", align_corners=True
    )[0]
    return found if outside is None else torch.where(inside(places, channels.shape[1:]), found, outside)


def inside(places: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(d, h, w) bool: which ``places`` (3, d, h, w) lie in an array of (D, H, W), half a cell of border included."""
    upper = torch.tensor(shape, dtype=torch.float32)[:, None, None, None] - 0.5
    return ((places >= -0.5) & (places <= upper)).all(dim=0)
