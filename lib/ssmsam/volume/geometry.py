"""Where voxels are: the grid of a volume, and the plane of work, which axis of it the slices are taken along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ssmsam.volume.errors import UnreadableVolume

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS millimetres into LPS millimetres and back."""

ORTHOGONAL = 1e-3
"""Largest cosine between two axes that still counts as a right angle (0.06 degrees)."""

FILES_MM = 0.1
"""How far the corners of an image and of a mask beside it may be apart: files round their headers. A guess."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels are: a shape and an affine, without the voxels.

    ``shape`` is (slices, rows, columns), the axis order of every array in this library.
    ``affine`` (4, 4) maps a voxel index **[i, j, k] = (column, row, slice)**, the order that viewers send,
    to LPS millimetres (x to the patient's left, y to posterior, z to superior).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid needs three non-empty axes (slices, rows, columns), got shape {self.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or _is_flat(affine):
            raise ValueError(f"a grid needs an invertible 4x4 affine, got {affine.tolist()}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxel centres along (slice, row, column) axes: the order of the array."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(k), float(j), float(i)

    def to_lps(self, ijk: np.ndarray) -> np.ndarray:
        """Voxel indices (N, 3) as (column, row, slice) -> LPS millimetres (N, 3)."""
        return np.asarray(ijk, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_ijk(self, lps: np.ndarray) -> np.ndarray:
        """LPS millimetres (N, 3) -> fractional voxel indices (N, 3) as (column, row, slice)."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(lps, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def contains(self, ijk: np.ndarray) -> np.ndarray:
        """Which voxel indices (N, 3) as (column, row, slice) round to a voxel of this grid: (N,) bool."""
        index = np.rint(np.asarray(ijk, dtype=np.float64))
        return ((index >= 0) & (index < np.array(self.shape[::-1]))).all(axis=-1)

    def matches(self, other: Grid, *, tolerance_mm: float = 1e-2) -> bool:
        """Same shape, and every corner within ``tolerance_mm`` of the other's, and within half a voxel."""
        if self.shape != other.shape:
            return False
        tolerance_mm = min(tolerance_mm, *(mm / 2 for mm in self.spacing))
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape[::-1]])).reshape(3, -1).T
        return bool(np.abs(self.to_lps(corners) - other.to_lps(corners)).max() <= tolerance_mm)


def _is_flat(affine: np.ndarray) -> bool:
    """Whether the three directions span no space, however small the voxels are."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6)


def axis_codes(grid: Grid) -> str:
    """Where the column, row and slice index grow to, as in "LPS": patient's left, posterior, superior."""
    return "".join(nib.aff2axcodes(RAS_LPS @ grid.affine))


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the axes of the (4, 4) affine are not at right angles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any():
        return False  # no direction at all: Grid refuses that with its own message
    axes = affine[:3, :3] / lengths
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > ORTHOGONAL)


def orthogonal_grid(shape: tuple[int, int, int], affine: np.ndarray, source: Path | str) -> Grid:
    """The grid of a file: (slices, rows, columns) and the LPS affine. Raises UnreadableVolume when unusable."""
    try:
        grid = Grid(shape, affine)
    except ValueError as error:
        raise UnreadableVolume(f"{source}: {error}. Convert the image again from its source.") from error
    if is_sheared(grid.affine):
        raise UnreadableVolume(
            f"{source}: the axes are not at right angles (a sheared affine). "
            "Resample the image to a straight grid first, for instance with 'Resample Scalar Volume' in 3D Slicer."
        )
    return grid


ENCODER_DIRECTIONS = np.array([1.0, -1.0, 1.0])
"""Patient directions, in LPS, in which encoders see pixels and slices run: to the left, anterior, superior."""

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Planes of the body, and the patient axis (x, y, z) that they lie across."""


@dataclass(frozen=True)
class Plane:
    """Slices perpendicular to one array axis: 0 the stored slices (default), 1 across rows, 2 across columns.

    Within a slice, x runs along its last array axis and y along the one before. This class is the only place
    where a voxel index [i, j, k] = (column, row, slice) becomes (slice index, x, y) and back.
    """

    axis: int = 0

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"a plane's axis is 0 (stored slices), 1 (rows) or 2 (columns), got {self.axis!r}")

    @classmethod
    def named(cls, name: str | None, grid: Grid) -> Plane:
        """The plane of a grid that comes nearest to one of :data:`PLANES`; None for the stored slices.

        Raises ValueError for another name.
        """
        if name is None:
            return cls()
        if name not in PLANES:
            raise ValueError(f"a plane is one of {', '.join(PLANES)}, got {name!r}")
        i_j_k = np.abs(grid.affine[PLANES[name], :3]) / grid.spacing[::-1]
        return cls(2 - int(i_j_k.argmax()))

    def stack(self, array: np.ndarray) -> np.ndarray:
        """(slices, rows, columns) -> a view (n, height, width) of the slices of this plane."""
        return np.moveaxis(array, self.axis, 0)

    def unstack(self, slices: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`stack`."""
        return np.moveaxis(slices, 0, self.axis)

    def count(self, grid: Grid) -> int:
        """How many slices the plane has."""
        return grid.shape[self.axis]

    def slice_shape(self, grid: Grid) -> tuple[int, int]:
        """(height, width) of a slice in voxels."""
        height, width = np.delete(grid.shape, self.axis)
        return int(height), int(width)

    def pixel_mm(self, grid: Grid) -> tuple[float, float]:
        """Millimetres per pixel along (y, x) of a slice."""
        y, x = np.delete(grid.spacing, self.axis)
        return float(y), float(x)

    def slice_mm(self, grid: Grid) -> float:
        """Millimetres between neighbouring slices."""
        return grid.spacing[self.axis]

    def mirrored(self, grid: Grid) -> tuple[bool, bool, bool]:
        """Along (slice, y, x): whether the index runs against :data:`ENCODER_DIRECTIONS`, so that what an encoder sees
        does not depend on the order in which voxels happen to be stored."""
        i, j, k = grid.affine[:3, :3].T
        against = [bool((axis * ENCODER_DIRECTIONS)[np.abs(axis).argmax()] < 0) for axis in (k, j, i)]
        along = against.pop(self.axis)
        return along, against[0], against[1]

    def split(self, ijk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voxel indices (N, 3) as (column, row, slice) -> slice indices (N,) and points (N, 2) as (x, y)."""
        kji = np.asarray(ijk, dtype=np.float64).reshape(-1, 3)[:, ::-1]
        return np.rint(kji[:, self.axis]).astype(int), np.delete(kji, self.axis, axis=1)[:, ::-1]

    def join(self, index: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`split`: (N,) slice indices and (N, 2) points -> (N, 3) [i, j, k]."""
        yx = np.asarray(xy, dtype=np.float64).reshape(-1, 2)[:, ::-1]
        return np.insert(yx, self.axis, np.asarray(index, dtype=np.float64), axis=1)[:, ::-1]


STORED_SLICES = Plane()
