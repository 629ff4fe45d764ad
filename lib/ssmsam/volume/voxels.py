"""The types that voxels are kept in: small, exact, and native to the machine."""

from __future__ import annotations

import numpy as np


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """``stored * slope + intercept``: integers when both are whole numbers, else float32 (never float64)."""
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        limits = np.iinfo(stored.dtype)
        ends = [int(end) * int(slope) + int(intercept) for end in (limits.min, limits.max)]
        if np.iinfo(np.int32).min <= min(ends) and max(ends) <= np.iinfo(np.int32).max:
            return stored.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    values = stored.astype(np.float32)
    values *= np.float32(slope)
    values += np.float32(intercept)
    return values


def compact(array: np.ndarray) -> np.ndarray:
    """Native byte order, no type wider than 4 bytes, integers as int16 where they fit, as uint32 where they must."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.itemsize <= 2:
        return array
    low, high = int(array.min()), int(array.max())
    for smaller in (np.int16, np.int32, np.uint32):
        if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
            return array.astype(smaller, copy=False)
    return array.astype(np.float32)
