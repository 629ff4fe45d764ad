"""A mask as the file and the details that every viewer understands."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ssmsam.volume.volume import Volume
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


@cache
def _folder() -> Path:
    """A folder of this process's own for masks on their way out, removed at its end.

    MONAI Label's client saves an answer under the server's file name in the temporary folder. On one machine that
    would be the server's own file, which the server removes once it is sent.
    """
    folder = Path(tempfile.mkdtemp(prefix="ssmsam-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
