"""A mask as the file and the details that every viewer understands."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.interactive.wire import read_flag
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.identifiers import VOLUME_SUFFIXES
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32")


def write_mask(mask: np.ndarray, volume: Volume, options: dict[str, Any]) -> str:
    """Write a label map (slices, rows, columns) on the volume's grid into a temporary file; returns its path.

    ``options`` may hold ``result_extension`` (.nrrd, .nii.gz, .nii), ``result_dtype`` and ``result_compress``, as
    viewers send them. Without a wish it is NRRD, uint8, and compressed: a click's mask is kilobytes then, not
    megabytes. Raises InvalidRequest.
    """
    suffix = _suffix(options.get("result_extension"))
    dtype = str(options.get("result_dtype") or "uint8")
    if dtype not in DTYPES:
        raise InvalidRequest(f"result_dtype {dtype!r} is not possible; use one of {', '.join(DTYPES)}")
    wish = options.get("result_compress")
    compress = True if wish is None else read_flag(wish, "result_compress")
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)  # a purge may have taken it
    with tempfile.NamedTemporaryFile(dir=folder, prefix="mask-", suffix=suffix, delete=False) as file:
        path = file.name
    try:
        write_volume(volume.with_array(mask.astype(dtype, copy=False)), path, compress=compress)
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


def _suffix(wanted: Any) -> str:
    suffix = str(wanted or ".nrrd").lower()
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    if suffix not in VOLUME_SUFFIXES:
        raise InvalidRequest(f"result_extension {suffix!r} is not possible; use one of {', '.join(VOLUME_SUFFIXES)}")
    return suffix
