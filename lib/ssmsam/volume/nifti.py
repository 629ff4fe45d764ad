"""NIfTI files to volumes: voxels by nibabel, the place in the patient as ITK reads it, and so as viewers show it.

ITK never gets the file itself: asked for ``a.nii.gz`` it silently reads ``a.nii`` when that lies beside it.
"""

from __future__ import annotations

import gzip
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

PIECE, MOST_REST = 1 << 20, 1 << 26
"""Bytes that are read at a time of what follows the voxels in a compressed file, and at most. *Guesses*."""


def read_nifti(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels (slices, rows, columns) and grid of a .nii or .nii.gz.

    Integers stay integers unless the header rescales to fractions; else float32.
    """
    image = _open(path)
    _grid(image, path)  # refused before the voxels are touched
    claimed = float(np.prod(image.shape, dtype=np.float64)) * image.get_data_dtype().itemsize
    compressed = path.name.lower().endswith(".gz")
    expect_held(claimed, path, compressed=compressed)
    if not compressed:
        return nifti_voxels(image, path)
    with gzip.open(path) as stream:
        proxy: Any = image.dataobj
        said = proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter
        streamed = type(image)(nib.arrayproxy.ArrayProxy(stream, said, mmap=False), image.affine, image.header)
        found = nifti_voxels(streamed, path, grid=_grid(image, path))
        _expect_whole(stream, path)
    return found


def _expect_whole(stream: gzip.GzipFile, path: Path) -> None:
    """Read on to where the checksum is, which nobody looks at before."""
    try:
        for _ in range(MOST_REST // PIECE):
            if not stream.read(PIECE):
                return
    except (OSError, EOFError, zlib.error) as error:
        if "Not a gzipped file" not in str(error):  # what follows a whole file is none of it
            raise UnreadableVolume(f"{path}: damaged or cut short ({error}). Copy or export it again.") from error


def nifti_slice(path: Path, index: int) -> np.ndarray:
    """(rows, columns) of one slice. A compressed file is unpacked no further than to its end."""
    image = _open(path)
    grid = _grid(image, path)
    proxy: Any = image.dataobj
    where = (slice(None), slice(None), *([index] if len(image.shape) > 2 else []), *[0] * (len(image.shape) - 3))
    stored = nib.arrayproxy.ArrayProxy(proxy.file_like, (proxy.shape, proxy.dtype, proxy.offset), mmap=False)
    try:
        pixels = rescaled(np.asanyarray(stored[where]), float(proxy.slope), float(proxy.inter))
    except (OSError, EOFError, IndexError, zlib.error) as error:
        raise UnreadableVolume(f"{path}: the voxels cannot be read ({error}). The file may be cut short.") from error
    return compact(pixels.T.reshape(grid.shape[1:]))


def nifti_voxels(image: nib.Nifti1Pair, source: Path | str, *, grid: Grid | None = None) -> tuple[np.ndarray, Grid]:
    """The same of an image that nibabel opened or made; ``source`` is for messages, ``grid`` where it is known."""
    grid = grid or _grid(image, source)
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
        step = "name it .nii" if path.name.lower().endswith(".gz") else "name it .nii.gz"
        raise UnreadableVolume(
            f"{path}: not a readable NIfTI file ({error}). Export it again, or {step} if that is what it is."
        ) from error
    if not isinstance(image, nib.Nifti1Pair):  # the parent of all NIfTI kinds
        raise UnreadableVolume(f"{path}: not a NIfTI file but {type(image).__name__}. Convert it to .nii.gz.")
    proxy: Any = image.dataobj
    if isinstance(image, nib.Nifti1Image) and proxy.offset == 0:
        raise UnreadableVolume(
            f"{path}: the header does not say where the voxels begin (vox_offset 0), and programs differ in it. "
            "Convert the image again from its source."
        )
    return image


def _stored_header(image: nib.Nifti1Pair) -> nib.Nifti1Header:
    """The header as it is in the file: nibabel makes voxel sizes positive, ITK does not."""
    header = image.header.copy()
    holder = image.file_map.get("header") or image.file_map["image"]
    if holder.filename is not None:
        with holder.get_prepare_fileobj("rb") as file:
            block = file.read(len(header.binaryblock))
        header["pixdim"] = type(header)(block, check=False)["pixdim"]
    return header


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
    header = _stored_header(image)
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
