"""A volume: voxels together with where they are in the patient."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """``stored * slope + intercept``: integers when both are whole numbers, else float32 (never float64)."""
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        limits = np.iinfo(stored.dtype)
        ends = [int(end) * int(slope) + int(intercept) for end in (limits.min, limits.max)]
        if np.iinfo(np.int32).min <= min(ends) and max(ends) <= np.iinfo(np.int32).max:
            return stored.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    values = stored.astype(np.float32)
    values *= np.float32(slope)
    values += np.float32(intercept)
    return values


def compact(array: np.ndarray) -> np.ndarray:
    """Native byte order, no type wider than 4 bytes, integers as int16 where they fit, as uint32 where they must."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.itemsize <= 2:
        return array
    low, high = int(array.min()), int(array.max())
    for smaller in (np.int16, np.int32, np.uint32):
        if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
            return array.astype(smaller, copy=False)
    return array.astype(np.float32)


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
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
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
        """Same shape, and every corner within ``tolerance_mm`` of the other's."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape[::-1]])).reshape(3, -1).T
        return bool(np.abs(self.to_lps(corners) - other.to_lps(corners)).max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels (slices, rows, columns) with their :class:`Grid` and what the file or series said about them.

    ``array`` holds stored values after rescale: HU for CT, arbitrary units for MR, label numbers for a mask.
    ``modality`` is the DICOM code ("CT", "MR", ...), or "" when the file does not say.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ValueError(f"a volume needs a 3-D array (slices, rows, columns), got shape {self.array.shape}")
        object.__setattr__(self, "affine", self.grid.affine)

    @cached_property
    def grid(self) -> Grid:
        slices, rows, columns = self.array.shape
        return Grid((slices, rows, columns), self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along (slice, row, column)."""
        return self.grid.spacing

    @cached_property
    def digest(self) -> str:
        """sha256 over voxels, dtype, shape and affine: equal exactly when image and geometry are equal."""
        sha = hashlib.sha256(repr((self.array.dtype.str, self.array.shape)).encode())
        sha.update(np.ascontiguousarray(self.affine.round(6) + 0.0).tobytes())
        for plane in self.array:  # slice by slice: never a second copy of the whole volume
            sha.update(np.ascontiguousarray(plane).tobytes())
        return sha.hexdigest()

    def with_array(self, array: np.ndarray) -> Volume:
        """Another image on the same grid, a mask for instance. Raises ValueError when the shape differs."""
        if array.shape != self.array.shape:
            raise ValueError(f"expected an array of shape {self.array.shape}, got {array.shape}")
        return replace(self, array=array)


def as_volume(image: Any, *, affine: np.ndarray | None = None) -> Volume:
    """The volume of an image that is already in memory.

    Args:
        image: a :class:`Volume`, which is returned as it is; an array (slices, rows, columns), which needs ``affine``;
            a nibabel NIfTI image; or a SimpleITK image.
        affine: (4, 4), from a voxel index [i, j, k] = (column, row, slice) to LPS millimetres. For arrays only: the
            other kinds know where they are.

    Returns:
        The voxels as (slices, rows, columns), never reoriented. A nibabel image's data [i, j, k] become [k, j, i].

    Raises:
        ValueError: for anything else, an array without an affine, and an affine for what has one.
        UnreadableVolume: for an image that is not one 3-D grey image.

    Example:
        >>> import numpy as np
        >>> as_volume(np.zeros((20, 64, 48)), affine=np.diag([0.8, 0.8, 5.0, 1.0])).spacing
        (5.0, 0.8, 0.8)
    """
    if isinstance(image, np.ndarray):
        if affine is None:
            raise ValueError(
                "an array does not say where it is in the patient: give affine=, a 4x4 matrix from (column, row, "
                "slice) to LPS millimetres, np.diag([x_mm, y_mm, z_mm, 1]) for instance"
            )
        if image.dtype.kind not in "biuf" or image.size == 0:
            raise ValueError(f"an image is an array of numbers, got {image.dtype} of shape {image.shape}")
        return Volume(compact(image), affine)
    if affine is not None:
        raise ValueError(f"affine= is for arrays, and a {type(image).__name__} knows where it is: leave it out")
    if isinstance(image, Volume):
        return image
    from ssmsam.volume.itk import from_itk  # these modules are built on this one
    from ssmsam.volume.nifti import from_nifti

    kind = type(image).__module__.partition(".")[0]
    if kind in ("nibabel", "SimpleITK"):
        return from_nifti(image) if kind == "nibabel" else from_itk(image)
    raise ValueError(
        f"an image is a Volume, an array with affine=, a nibabel or a SimpleITK image, got {type(image).__name__}: "
        "read files and folders with read_volume first"
    )
