"""NRRD and MetaImage files to volumes, by SimpleITK."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ssmsam.volume.errors import UnreadableVolume, expect_held, reason_of
from ssmsam.volume.geometry import Grid, orthogonal_grid
from ssmsam.volume.voxels import compact

META_DATA_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:]([^\r\n]*)", re.MULTILINE)
META_COMPRESSED = re.compile(rb"^[ \t]*CompressedData[ \t]*[=:][ \t]*true", re.MULTILINE | re.IGNORECASE)
NRRD_DIRECTIONS = re.compile(rb"^space directions:([^\r\n]*)", re.MULTILINE)
NRRD_DATA_FILE = re.compile(rb"^[ \t]*data ?file:([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
PIECE = 1 << 20
"""Bytes that are unpacked at a time."""
MOST_HEADER = 1 << 20
"""Bytes of a file in which its header ends. *Guess*: the headers of segmentations with many segments are a tenth."""


def read_itk(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels (slices, rows, columns) and grid of a .nrrd, .nhdr, .mha or .mhd file."""
    reader = _open(path)
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
    return header_grid(_open(path), path)


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


def _open(path: Path) -> sitk.ImageFileReader:
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
