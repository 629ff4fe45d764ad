"""A mask as the file and the details that every viewer understands."""

from __future__ import annotations

import atexit
import base64
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.service.errors import InvalidRequest
from ssmsam.volume.geometry import Plane, axis_codes
from ssmsam.volume.volume import Grid, Volume
from ssmsam.volume.writing import write_volume

DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32")


@dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """The file that a mask becomes. A click's mask is kilobytes when it is compressed, not megabytes."""

    suffix: str = ".nrrd"
    """One of :data:`~ssmsam.service.identifiers.VOLUME_SUFFIXES`."""
    dtype: str = "uint8"
    """One of :data:`DTYPES`."""
    compress: bool = True


DEFAULT_FORMAT = MaskFormat()


def write_mask(mask: np.ndarray, volume: Volume, format: MaskFormat = DEFAULT_FORMAT) -> str:
    """Write a label map (slices, rows, columns) on the volume's grid into a temporary file; returns its path."""
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)  # a purge may have taken it
    with tempfile.NamedTemporaryFile(dir=folder, prefix="mask-", suffix=format.suffix, delete=False) as file:
        path = file.name
    try:
        write_volume(volume.with_array(mask.astype(format.dtype, copy=False)), path, compress=format.compress)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return path


def centroids(mask: np.ndarray, labels: dict[str, int]) -> dict[str, list[int]]:
    """The voxel [i, j, k] = (column, row, slice) in the middle of each label that is present."""
    found = {}
    for name, value in labels.items():
        voxels = np.argwhere(mask == value)
        if len(voxels):
            found[name] = np.rint(voxels.mean(axis=0)[::-1]).astype(int).tolist()
    return found


def slice_as_json(values: np.ndarray, index: int, *, plane: Plane, grid: Grid) -> dict[str, Any]:
    """One slice (height, width) of numbers from 0 to 255 for an answer in JSON, without a file.

    ``axis`` is that of a client's [i, j, k] = (column, row, slice) which the slice is perpendicular to, and ``shape``
    its pixels along the other two, the later one first; ``towards`` are the sides of the patient to which these run.
    ``data`` holds the pixels in that order, one byte each, deflated (zlib) and in base64.
    """
    axis = 2 - plane.axis
    codes = axis_codes(grid)
    return {
        "axis": axis,
        "index": index,
        "shape": list(values.shape),
        "towards": [codes[other] for other in (2, 1, 0) if other != axis],
        "encoding": "zlib",
        "data": base64.b64encode(zlib.compress(np.ascontiguousarray(values, np.uint8).tobytes(), 1)).decode(),
    }


def slice_from_json(said: Mapping[str, Any], grid: Grid) -> tuple[int, int, np.ndarray]:
    """What :func:`slice_as_json` says of a slice of this grid: the array axis that it is perpendicular to, its number
    and its mask (height, width) bool. Raises InvalidRequest."""
    axis, index = said.get("axis", 2), said.get("index")
    if axis not in (0, 1, 2) or not isinstance(index, int):
        raise InvalidRequest("say which slice it is: axis (0, 1 or 2, of a client's [i, j, k]) and index")
    plane = Plane(2 - axis)
    shape = plane.slice_shape(grid)
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(str(said.get("data", ""))), shape[0] * shape[1] + 1)
    except (ValueError, zlib.error):
        raise InvalidRequest("data has to be the slice's pixels, a byte each, deflated (zlib) and in base64") from None
    if len(unpacked) != shape[0] * shape[1]:
        raise InvalidRequest(f"a slice of this image along axis {axis} has {shape[0]} x {shape[1]} pixels, a byte each")
    return plane.axis, index, np.frombuffer(unpacked, np.uint8).reshape(shape) > 0


@cache
def _folder() -> Path:
    """A folder of this process's own for masks on their way out, removed at its end.

    MONAI Label's client saves an answer under the server's file name in the temporary folder. On one machine that
    would be the server's own file, which the server removes once it is sent.
    """
    folder = Path(tempfile.mkdtemp(prefix="ssmsam-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
