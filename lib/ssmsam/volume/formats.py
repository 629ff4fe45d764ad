"""Files to volumes: NIfTI by nibabel, NRRD and MetaImage by SimpleITK; and the types that voxels are kept in.

The place of a NIfTI file in the patient is the one that ITK reads, and so the one that viewers show. ITK never gets the
file itself: asked for ``a.nii.gz`` it silently reads ``a.nii`` when that lies beside it.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ssmsam.volume.errors import UnreadableVolume, expect_held, reason_of
from ssmsam.volume.geometry import RAS_LPS, Grid, is_sheared, orthogonal_grid


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """``stored * slope + intercept``: integers when both are whole numbers, else float32 (never float64).

    Raises UnreadableVolume where that makes infinities of numbers.
    """
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        limits = np.iinfo(stored.dtype)
        ends = [int(end) * int(slope) + int(intercept) for end in (limits.min, limits.max)]
        if np.iinfo(np.int32).min <= min(ends) and max(ends) <= np.iinfo(np.int32).max:
            return stored.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(np.float32)
        values *= np.float32(slope)
        values += np.float32(intercept)
    _expect_kept(stored, values, f"a slope of {slope:g} and an intercept of {intercept:g} make")
    return values


def _expect_kept(before: np.ndarray, after: np.ndarray, what: str) -> None:
    if np.isfinite(after).sum() < (np.isfinite(before).sum() if before.dtype.kind == "f" else before.size):
        raise UnreadableVolume(
            f"{what} voxels of more than {np.finfo(np.float32).max:.2g}, which no image has. Export it again; "
            "replace numbers that mark what was not measured by NaN."
        )


def compact(array: np.ndarray) -> np.ndarray:
    """Native byte order, no type wider than 4 bytes, integers as int16 where they fit, as uint32 where they must.

    Raises UnreadableVolume for numbers beyond float32.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = array.astype(np.float32, copy=False)
        if array.dtype.itemsize > 4:
            _expect_kept(array, single, "it has")
        return single
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.itemsize <= 2:
        return array
    low, high = int(array.min()), int(array.max())
    for smaller in (np.int16, np.int32, np.uint32):
        if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
            return array.astype(smaller, copy=False)
    return array.astype(np.float32)


META_DATA_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:]([^\r\n]*)", re.MULTILINE)
META_COMPRESSED = re.compile(rb"^[ \t]*CompressedData[ \t]*[=:][ \t]*true", re.MULTILINE | re.IGNORECASE)
NRRD_DIRECTIONS = re.compile(rb"^space directions:([^\r\n]*)", re.MULTILINE)
NRRD_DATA_FILE = re.compile(rb"^[ \t]*data ?file:([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
PIECE = 1 << 20
"""Bytes that are unpacked, or read, at a time."""
MOST_HEADER = 1 << 20
"""Bytes of a file in which its header ends. *Guess*: the headers of segmentations with many segments are a tenth."""


def read_itk(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels (slices, rows, columns) and grid of a .nrrd, .nhdr, .mha or .mhd file."""
    reader = _open_itk(path)
    grid = header_grid(reader, path)
    if path.name.lower().endswith((".mha", ".mhd")):
        _expect_whole(path)
    try:
        if path.name.lower().endswith((".nrrd", ".mha")):  # the others keep their voxels in a file of their own
            expect_held(float(np.prod(reader.GetSize(), dtype=np.float64)), path)
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise UnreadableVolume(
            f"{path}: the voxels cannot be read. The file may be cut short. ({reason_of(error)})"
        ) from error
    return compact(array.reshape(grid.shape)), grid


def itk_voxels(image: sitk.Image, source: Path | str) -> tuple[np.ndarray, Grid]:
    """Voxels (slices, rows, columns) and grid of an image; ``source`` is for messages."""
    grid = header_grid(image, source)
    return compact(sitk.GetArrayFromImage(image).reshape(grid.shape)), grid


def itk_grid(path: Path) -> Grid:
    """The grid of a file that :func:`read_itk` reads, from its header alone."""
    return header_grid(_open_itk(path), path)


def _expect_own_voxels(path: Path) -> None:
    """Refuse a header that takes its voxels from anywhere but the file itself, or one file beside it.

    Such a header could show any file of this machine, and MetaImage crashes on names that are patterns or folders.
    """
    with open(path, "rb") as file:
        head = file.read(MOST_HEADER)
    is_meta, is_detached = path.suffix.lower() in (".mha", ".mhd"), path.suffix.lower() in (".mhd", ".nhdr")
    header = head if is_meta else head.partition(b"\n\n")[0]
    found = (META_DATA_FILE if is_meta else NRRD_DATA_FILE).search(header)
    named = found.group(1).decode(errors="replace").strip() if found else ""
    if is_detached:
        is_own = bool(named) and Path(named).name == named and (path.parent / named).is_file()
    else:
        is_own = named == ("LOCAL" if is_meta else "")
    if not is_own:
        raise UnreadableVolume(
            f"{path}: its voxels are not in it, nor in one file beside it, but in {named or 'no file'!r}. "
            "Save the image as one .nrrd or .mha file."
        )
    if (axes := NRRD_DIRECTIONS.search(header)) and b"none" in axes[1] and 0 < axes[1].count(b"(") < 3:
        raise UnreadableVolume(
            f"{path}: its header gives a direction to {axes[1].count(b'(')} axes only, so where it lies is unknown. "
            "Export it again as one 3-D image."
        )


def _expect_whole(path: Path) -> None:
    """Unpack compressed voxels of a MetaImage: ITK goes on with what it has where they are damaged."""
    with open(path, "rb") as file:
        head = file.read(MOST_HEADER)
    found = META_DATA_FILE.search(head)
    if found is None or not META_COMPRESSED.search(head[: found.start()]):
        return
    named = found[1].decode(errors="replace").strip()
    with open(path if named == "LOCAL" else path.parent / named, "rb") as file:
        file.seek(head.index(b"\n", found.end()) + 1 if named == "LOCAL" else 0)
        inflate = zlib.decompressobj()
        try:
            while not inflate.eof and (packed := inflate.unconsumed_tail or file.read(PIECE)):
                inflate.decompress(packed, PIECE)
        except zlib.error as error:
            raise UnreadableVolume(f"{path}: damaged ({error}). Copy or export it again.") from error
    if not inflate.eof:
        raise UnreadableVolume(f"{path}: cut short. Copy or export it again.")


def _open_itk(path: Path) -> sitk.ImageFileReader:
    _expect_own_voxels(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableVolume(f"{path}: not a readable image file ({reason_of(error)}). Export it again.") from error
    return reader


def header_grid(reader: sitk.ImageFileReader | sitk.Image, path: Path | str) -> Grid:
    """The grid that an opened header or an image says; ``path`` is for messages."""
    size = reader.GetSize()
    if isinstance(reader, sitk.Image):
        values = reader.GetNumberOfComponentsPerPixel()
    else:
        values = reader.GetNumberOfComponents()
    if values != 1:
        raise UnreadableVolume(
            f"{path}: {values} values per voxel (colour, vectors or several segments); "
            "one grey value is needed. Save the channel you want as a file of its own."
        )
    if len(size) < 2 or any(n != 1 for n in size[3:]):
        raise UnreadableVolume(
            f"{path}: an image of {len(size)} dimensions {size}; one 3-D image is needed. "
            "Save the time point you want as a file of its own."
        )
    used = min(len(size), 3)
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (len(size), len(size)))
    affine[:used, :used] = direction[:used, :used] * reader.GetSpacing()[:used]
    affine[:used, 3] = reader.GetOrigin()[:used]
    columns, rows, slices = (*size, 1)[:3]
    return orthogonal_grid((slices, rows, columns), affine, path)


logger = logging.getLogger(__name__)

MOST_REST = 1 << 26
"""Bytes that are read of what follows the voxels in a compressed file, at most. *Guess*."""


def read_nifti(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels (slices, rows, columns) and grid of a .nii or .nii.gz.

    Integers stay integers unless the header rescales to fractions; else float32.
    """
    image = _open_nifti(path)
    _nifti_grid(image, path)  # refused before the voxels are touched
    claimed = float(np.prod(image.shape, dtype=np.float64)) * image.get_data_dtype().itemsize
    compressed = path.name.lower().endswith(".gz")
    expect_held(claimed, path, compressed=compressed)
    if not compressed:
        return nifti_voxels(image, path)
    with gzip.open(path) as stream:
        proxy: Any = image.dataobj
        said = proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter
        streamed = type(image)(nib.arrayproxy.ArrayProxy(stream, said, mmap=False), image.affine, image.header)
        found = nifti_voxels(streamed, path, grid=_nifti_grid(image, path))
        _expect_checksum(stream, path)
    return found


def _expect_checksum(stream: gzip.GzipFile, path: Path) -> None:
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
    image = _open_nifti(path)
    grid = _nifti_grid(image, path)
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
    grid = grid or _nifti_grid(image, source)
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
    return _nifti_grid(_open_nifti(path), path)


def _open_nifti(path: Path) -> nib.Nifti1Pair:
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


def _nifti_grid(image: nib.Nifti1Pair, path: Path | str) -> Grid:
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
