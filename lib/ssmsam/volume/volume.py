"""A volume: voxels together with where they are in the patient."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import orientations

from ssmsam.volume.errors import UnreadableVolume, one_error
from ssmsam.volume.formats import compact, itk_voxels, nifti_voxels
from ssmsam.volume.geometry import RAS_LPS, Grid, orthogonal_grid

__all__ = ["Grid", "ImageLike", "Volume", "as_volume", "reoriented"]


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
    return replace(volume, array=np.ascontiguousarray(turned.T), affine=moved)


ImageLike: TypeAlias = "Volume | np.ndarray | nib.spatialimages.SpatialImage | sitk.Image"
"""What :func:`as_volume` takes."""


def as_volume(image: ImageLike, *, affine: Any = None) -> Volume:
    """A volume from what other libraries hold, on the image's own grid: nothing is turned or resampled.

    Args:
        image: A volume, a nibabel or SimpleITK image, or an array with axes (slices, rows, columns); two axes make
            one slice. Colours and time points are refused.
        affine: (4, 4), needed for an array and only there: voxel index [i, j, k] = (column, row, slice) to LPS
            millimetres. nibabel's affines lead to RAS: ``numpy.diag([-1, -1, 1, 1]) @ image.affine``.

    Returns:
        The volume, whose numbers are no wider than 4 bytes: integers stay integers, else float32.

    Raises:
        UnreadableVolume: It is not one 3-D grey image on a straight grid, or an array without an affine.
        ValueError: Another kind of object, or an affine for what has one.

    Example:
        >>> ct = as_volume(np.zeros((2, 4, 4), dtype=np.int16), affine=np.diag([0.8, 0.8, 5, 1]))
        >>> ct.spacing
        (5.0, 0.8, 0.8)
    """
    if not isinstance(image, np.ndarray | Volume | sitk.Image | nib.spatialimages.SpatialImage):
        raise ValueError(
            f"an image is a Volume, an array with affine=, or one of nibabel or SimpleITK, got {type(image).__name__}: "
            "read files and folders with read_volume first"
        )
    if affine is not None and not isinstance(image, np.ndarray):
        raise ValueError(f"affine= is for arrays, and a {type(image).__name__} knows where it is: leave it out")
    if isinstance(image, Volume):
        return image
    if isinstance(image, np.ndarray) and affine is None:
        raise UnreadableVolume(
            "an array does not say where it is in the patient: give affine=, a 4x4 matrix from (column, row, slice) to "
            "LPS millimetres, np.diag([x_mm, y_mm, z_mm, 1]) for instance"
        )
    source = "the image"
    with one_error(source):
        if isinstance(image, np.ndarray):
            volume = _of_array(image, affine, source)
        elif isinstance(image, sitk.Image | nib.Nifti1Pair):
            read = itk_voxels(image, source) if isinstance(image, sitk.Image) else nifti_voxels(image, source)
            volume = Volume(read[0], read[1].affine)
        else:
            volume = _of_array(np.asanyarray(image.dataobj).T, RAS_LPS @ image.affine, source)
        return volume


def _of_array(array: np.ndarray, affine: Any, source: str) -> Volume:
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise UnreadableVolume(
            f"{source}: shape {array.shape} of {array.dtype}; one 3-D grey image (slices, rows, columns) is needed."
        )
    slices, rows, columns = array.shape
    return Volume(compact(array), orthogonal_grid((slices, rows, columns), np.asarray(affine), source).affine)
