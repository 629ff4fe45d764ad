"""One door for every kind of input: a file or a DICOM folder becomes a volume."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ssmsam.dicom.series import find_series, read_dicom, read_pixels
from ssmsam.volume.errors import UnreadableVolume, one_error
from ssmsam.volume.formats import itk_grid, nifti_grid, nifti_slice, read_itk, read_nifti
from ssmsam.volume.volume import Grid, Volume

__all__ = ["UnreadableVolume", "read_grid", "read_slice", "read_volume"]

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI, NRRD or MetaImage file, or a folder that holds one DICOM series.

    The array is (slices, rows, columns) as stored, never reoriented; the affine says where it is in LPS. Values are
    after rescale: integers where they are whole numbers, else float32. A 2-D image becomes one slice.
    Raises UnreadableVolume, with the next step to take, for everything that is not one 3-D grey image.
    """
    path = Path(path)
    with one_error(path):
        if _is_folder(path):
            volume = read_dicom(path)
        else:
            array, grid = read_nifti(path) if path.name.lower().endswith(NIFTI) else read_itk(path)
            volume = Volume(array, grid.affine)
        return volume


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The grid of what :func:`read_volume` would read, from headers alone: no voxel is touched."""
    path = Path(path)
    with one_error(path):
        if _is_folder(path):
            return find_series(path).grid
        return nifti_grid(path) if path.name.lower().endswith(NIFTI) else itk_grid(path)


def read_slice(path: str | os.PathLike[str], index: int) -> tuple[np.ndarray, str]:
    """One slice (rows, columns) of what :func:`read_volume` would read, and the modality that the file says.

    DICOM (of one slice each) and NIfTI files are read no further than to its end. Raises UnreadableVolume.
    """
    path = Path(path)
    with one_error(path):
        if _is_folder(path):
            series = find_series(path)
            return read_pixels(series.files[index : index + 1], series.frames[index : index + 1])[0], series.modality
        if path.name.lower().endswith(NIFTI):
            return nifti_slice(path, index), ""
        return read_itk(path)[0][index], ""


def _is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False for a file of a known kind. Raises UnreadableVolume for anything else."""
    if path.is_dir():
        return True
    if not path.is_file():
        raise UnreadableVolume(f"{path}: there is no such file or folder.")
    if not path.name.lower().endswith(NIFTI + ITK):
        raise UnreadableVolume(
            f"{path}: unknown kind of file. Give a file ending in {', '.join(NIFTI + ITK)}, "
            "or the folder that holds the files of one DICOM series."
        )
    return False
