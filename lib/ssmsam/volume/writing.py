"""Volumes to files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ssmsam.files import whole_file
from ssmsam.volume.geometry import RAS_LPS
from ssmsam.volume.volume import ImageLike, Volume, as_volume


def write_volume(volume: ImageLike, path: str | os.PathLike[str], *, affine: Any = None, compress: bool = True) -> None:
    """Write a .nii, .nii.gz or .nrrd file on the volume's own grid, keeping the type of its voxels.

    The file appears whole or not at all, and the same volume always makes the same bytes.

    Args:
        volume: A volume, or what :func:`~ssmsam.volume.volume.as_volume` takes with ``affine``.
        path: Its suffix says the format.
        affine: (4, 4) for an array, voxel index (column, row, slice) to LPS millimetres.
        compress: Gzip or raw NRRD; NIfTI says it by its suffix.

    Raises:
        ValueError: Another suffix, or no volume.

    Example:
        >>> write_volume(mask, "liver.nii.gz", affine=ct.affine)  # doctest: +SKIP
    """
    volume = as_volume(volume, affine=affine)
    path = Path(path)
    for suffix in (".nii.gz", ".nii", ".nrrd"):
        if path.name.lower().endswith(suffix):
            break
    else:
        raise ValueError(f"cannot write {path.name}: the name has to end in .nii, .nii.gz or .nrrd")
    with whole_file(path, suffix) as partial:
        if suffix == ".nrrd":
            sitk.WriteImage(_itk_image(volume), str(partial), compress, compressionLevel=1)
        else:
            nib.save(_nifti_image(volume), partial)


NIFTI_HEADER = 352
"""Bytes before the voxels: the header, and that there are no extensions."""


def nifti_pieces(volume: Volume) -> tuple[int, Iterator[bytes]]:
    """An uncompressed NIfTI file as its number of bytes and its pieces, the header and slice after slice."""
    image = _nifti_image(volume)
    array, header = _storable(volume.array), image.header
    header.set_data_offset(NIFTI_HEADER)
    header.set_slope_inter(1, 0)

    def pieces() -> Iterator[bytes]:
        yield header.binaryblock + bytes(NIFTI_HEADER - len(header.binaryblock))
        for plane in array:
            yield plane.astype(header.get_data_dtype(), copy=False).tobytes()

    return NIFTI_HEADER + array.size * header.get_data_dtype().itemsize, pieces()


def _storable(array: np.ndarray) -> np.ndarray:
    """The array in a type that both formats know."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _nifti_image(volume: Volume) -> nib.Nifti1Image:
    array = _storable(volume.array)
    affine = RAS_LPS @ volume.affine
    image = nib.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _itk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(_storable(volume.array))
    spacing = np.array(volume.spacing[::-1])
    image.SetSpacing(spacing.tolist())
    image.SetDirection((volume.affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image
