"""The plane of work: which axis of the volume the slices are taken along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.volume import Grid, Volume

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS millimetres into LPS millimetres and back."""

ORTHOGONAL = 1e-3
"""Largest cosine between two axes that still counts as a right angle (0.06 degrees)."""


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the axes of the (4, 4) affine are not at right angles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any():
        return False  # no direction at all: Grid refuses that with its own message
    axes = affine[:3, :3] / lengths
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > ORTHOGONAL)


def orthogonal_grid(shape: tuple[int, int, int], affine: np.ndarray, source: Path) -> Grid:
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


def axis_codes(volume: Volume | Grid) -> str:
    """Where the column, row and slice index grow to, as in "LPS": patient's left, posterior, superior."""
    return "".join(nib.aff2axcodes(RAS_LPS @ volume.affine))


def reoriented(volume: Volume, codes: str) -> Volume:
    """The same voxels at the same places, stored so that (column, row, slice) grow towards ``codes``, "RAS" say.

    Axes are flipped and swapped, never resampled. Raises ValueError for codes that are not three directions.
    """
    pairs = ("LR", "AP", "SI")
    if len(codes) != 3 or any(sum(c in pair for c in codes) != 1 for pair in pairs):
        raise ValueError(f"an orientation names three directions such as LPS or RAS, got {codes!r}")
    affine = RAS_LPS @ volume.affine
    change = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes)))
    ijk = volume.array.T
    turned = orientations.apply_orientation(ijk, change)
    moved = RAS_LPS @ affine @ orientations.inv_ornt_aff(change, ijk.shape)
    return Volume(
        np.ascontiguousarray(turned.T), moved, volume.modality, volume.series_uid, volume.frame_of_reference_uid
    )


SHOWN_TOWARDS = np.array([1.0, -1.0, 1.0])
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
        """Along (slice, y, x): whether the index runs against :data:`SHOWN_TOWARDS`, so that what an encoder is shown
        does not depend on the order in which voxels happen to be stored."""
        i, j, k = grid.affine[:3, :3].T
        against = [bool((axis * SHOWN_TOWARDS)[np.abs(axis).argmax()] < 0) for axis in (k, j, i)]
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
