"""One slice of a method's mask, small enough to stay in its record, so that a finished run can be looked at."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np


def keep_slice(mask: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    """The scored slice on which a mask is wrong in most pixels, and the mask there, ready for JSON.

    Masks (slices, rows, columns), ``scored`` (slices,) bool. Where nothing is wrong, the slice where the object is
    largest.
    """
    wrong = (mask != truth).sum(axis=(1, 2)) * scored
    index = int((wrong if wrong.any() else truth.sum(axis=(1, 2)) * scored).argmax())
    packed = zlib.compress(np.packbits(mask[index] != 0).tobytes(), 9)
    return {"slice": index, "mask": base64.b64encode(packed).decode()}


def kept_mask(kept: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """The mask (rows, columns) bool that :func:`keep_slice` kept. Raises ValueError when it has another shape."""
    packed = np.frombuffer(zlib.decompress(base64.b64decode(kept["mask"])), dtype=np.uint8)
    rows, columns = shape
    if len(packed) != -(-rows * columns // 8):
        raise ValueError(f"the mask that was kept is not of shape {shape}: was the image changed since?")
    return np.unpackbits(packed, count=rows * columns).reshape(shape).astype(bool)
