"""NIfTI files to volumes: voxels by nibabel, the place in the patient as ITK reads it, and so as viewers show it.

ITK never gets the file itself: asked for ``a.nii.gz`` it silently reads ``a.nii`` when that lies beside it.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ssmsam.volume.errors import UnreadableVolume, expect_held, one_error
from ssmsam.volume.geometry import RAS_LPS, is_sheared, orthogonal_grid
from ssmsam.volume.itk import header_grid
from ssmsam.volume.volume import Grid, Volume, compact, rescaled

logger = logging.getLogger(__name__)


def read_nifti(path: Path) -> Volume:
    """Read a .nii or .nii.gz. Integers stay integers unless the header rescales to fractions; else float32."""
    image = _open(path)
    grid = _grid(image, path)
    proxy: Any = image.dataobj
    claimed = float(np.prod(image.shape, dtype=np.float64)) * image.get_data_dtype().itemsize
    expect_held(claimed, path, compressed=path.name.lower().endswith(".gz"))
    try:
        stored = np.asanyarray(proxy.get_unscaled())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UnreadableVolume(f"{path}: the voxels cannot be read ({error}). The file may be cut short.") from error
    return _volume(rescaled(stored, float(proxy.slope), float(proxy.inter)), grid)


def from_nifti(image: Any) -> Volume:
    """The volume of a nibabel image in memory. Raises UnreadableVolume when it is no single 3-D NIfTI image."""
    source = Path(image.get_filename() or "this nibabel image")
    if not isinstance(image, nib.Nifti1Pair):
        raise UnreadableVolume(f"{source}: not a NIfTI image but {type(image).__name__}. Convert it to .nii.gz.")
    with one_error(source):
        grid = _grid(image, source)
        proxy: Any = image.dataobj
        if nib.is_proxy(proxy):
            return _volume(rescaled(np.asanyarray(proxy.get_unscaled()), float(proxy.slope), float(proxy.inter)), grid)
        return _volume(np.asanyarray(proxy), grid)


def _volume(array: np.ndarray, grid: Grid) -> Volume:
    """Stored (i, j, k), i fastest -> (slice, row, column)."""
    return Volume(compact(array.T.reshape(grid.shape)), grid.affine)


def nifti_grid(path: Path) -> Grid:
    """The grid of a NIfTI file, from its header alone."""
    return _grid(_open(path), path)


def _open(path: Path) -> nib.Nifti1Pair:
    try:
        image = nib.load(path, mmap=False)  # a map would change, or crash, when the file is replaced
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UnreadableVolume(f"{path}: not a readable NIfTI file ({error}).") from error
    if not isinstance(image, nib.Nifti1Pair):  # the parent of all NIfTI kinds
        raise UnreadableVolume(f"{path}: not a NIfTI file but {type(image).__name__}. Convert it to .nii.gz.")
    return image


def _grid(image: nib.Nifti1Pair, path: Path) -> Grid:
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "biuf":
        raise UnreadableVolume(f"{path}: colour or complex voxels ({dtype}). Convert the image to a single grey value.")
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 3:
        raise UnreadableVolume(
            f"{path}: an image of {len(shape)} dimensions {image.shape}; one 3-D image is needed. "
            "Save the time point or channel you want as a file of its own."
        )
    columns, rows, slices = (*shape, 1)[:3]
    grid = _itk_view(image, path)
    if grid is not None and grid.shape == (slices, rows, columns):
        return grid
    return orthogonal_grid((slices, rows, columns), RAS_LPS @ _nibabel_affine(image, path), path)


def _itk_view(image: nib.Nifti1Pair, path: Path) -> Grid | None:
    """The grid as ITK reads the header, None where ITK does not take it.

    sform and qform may differ, lack their codes or have other units than millimetres; which of them counts, and with
    which precision, is ITK's choice because the viewers are built on it.
    """
    header = image.header.copy()
    header["magic"] = header.single_magic
    header["vox_offset"] = -(-(header["sizeof_hdr"].item() + 4) // 16) * 16
    reader = sitk.ImageFileReader()
    with TemporaryDirectory(prefix="ssmsam-") as folder:
        copy = Path(folder) / "header.nii"
        copy.write_bytes(header.binaryblock + bytes(4))  # no extensions
        reader.SetFileName(str(copy))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return None
    return header_grid(reader, path)


def _nibabel_affine(image: nib.Nifti1Pair, path: Path) -> np.ndarray:
    """The RAS affine: the sform, or the qform when the sform is sheared (as registration tools leave it)."""
    affine = image.affine
    if not is_sheared(affine):
        return affine
    qform = image.header.get_qform(coded=True)[0]
    if qform is not None and not is_sheared(qform):
        logger.warning("%s: the sform is sheared, using the qform", path)
        return qform
    return affine
