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

from ssmsam.volume.errors import UnreadableVolume, expect_held
from ssmsam.volume.geometry import RAS_LPS, Grid, is_sheared, orthogonal_grid
from ssmsam.volume.itk import header_grid
from ssmsam.volume.voxels import compact, rescaled

logger = logging.getLogger(__name__)


def read_nifti(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels (slices, rows, columns) and grid of a .nii or .nii.gz.

    Integers stay integers unless the header rescales to fractions; else float32.
    """
    image = _open(path)
    _grid(image, path)  # refused before the voxels are touched
    claimed = float(np.prod(image.shape, dtype=np.float64)) * image.get_data_dtype().itemsize
    expect_held(claimed, path, compressed=path.name.lower().endswith(".gz"))
    return nifti_voxels(image, path)


def nifti_voxels(image: nib.Nifti1Pair, source: Path | str) -> tuple[np.ndarray, Grid]:
    """The same of an image that nibabel opened or made; ``source`` is for messages."""
    grid = _grid(image, source)
    proxy: Any = image.dataobj
    try:
        if isinstance(proxy, nib.arrayproxy.ArrayProxy):
            array = rescaled(np.asanyarray(proxy.get_unscaled()), float(proxy.slope), float(proxy.inter))
        else:
            array = np.asanyarray(proxy)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UnreadableVolume(f"{source}: the voxels cannot be read ({error}). The file may be cut short.") from error
    return compact(array.T.reshape(grid.shape)), grid  # stored (i, j, k), i fastest -> (slice, row, column)


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


def _grid(image: nib.Nifti1Pair, path: Path | str) -> Grid:
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


def _itk_view(image: nib.Nifti1Pair, path: Path | str) -> Grid | None:
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


def _nibabel_affine(image: nib.Nifti1Pair, path: Path | str) -> np.ndarray:
    """The RAS affine: the sform, or the qform when the sform is sheared (as registration tools leave it)."""
    affine = image.affine
    if not is_sheared(affine):
        return affine
    qform = image.header.get_qform(coded=True)[0]
    if qform is not None and not is_sheared(qform):
        logger.warning("%s: the sform is sheared, using the qform", path)
        return qform
    return affine
