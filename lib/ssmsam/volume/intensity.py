"""How intensities become encoder input in [0, 1]: one scale for the whole volume, never one per slice."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from math import gcd
from typing import ClassVar

import numpy as np

from ssmsam.volume.volume import Volume

SAMPLE_VOXELS = 2_000_000
"""Percentiles of larger volumes come from about this many voxels, evenly spread."""

EXACT = 2**24
"""Whole numbers up to this one are exact in float32; larger ones are rounded to steps of up to 256."""

WIDEST = 1e38
"""Between numbers farther apart than this, differences may be beyond float32."""


@dataclass(frozen=True)
class Scale:
    """The intensities that become 0 and 1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ValueError(f"a scale needs low < high, got {self.low} and {self.high}")

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Any array -> float32 of its shape in [0, 1]; below ``low`` and not-a-number become 0, above ``high`` 1."""
        array, low = np.asarray(array), np.float32(self.low)
        if self.high - self.low > WIDEST:
            unit = ((array.astype(np.float64) - self.low) / (self.high - self.low)).astype(np.float32)
        else:
            if array.dtype.itemsize == 4 and array.dtype.kind in "iu" and max(abs(self.low), abs(self.high)) > EXACT:
                array, low = array - np.float64(self.low), np.float32(0)
            unit = (array.astype(np.float32) - low) / np.float32(self.high - self.low)
        return np.clip(np.nan_to_num(unit, copy=False, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)


@dataclass(frozen=True)
class IntensityRecipe(ABC):
    """A named way to find the scale of a volume."""

    name: ClassVar[str]

    @property
    def digest(self) -> str:
        """sha256 over name and parameters: part of every cache key and every result."""
        return hashlib.sha256(json.dumps([self.name, asdict(self)], sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def scale(self, volume: Volume) -> Scale:
        """The scale of this volume."""


@dataclass(frozen=True)
class CtWindow(IntensityRecipe):
    """A fixed window in Hounsfield units; the default shows the soft tissue of the abdomen."""

    low_hu: float = -160.0
    high_hu: float = 240.0
    name: ClassVar[str] = "ct_window"

    def scale(self, volume: Volume) -> Scale:
        return Scale(self.low_hu, self.high_hu)


@dataclass(frozen=True)
class MrPercentiles(IntensityRecipe):
    """From one percentile of the whole volume to another: for intensities without a unit."""

    low: float = 0.5
    high: float = 99.5
    name: ClassVar[str] = "mr_percentiles"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles need 0 <= low < high <= 100, got {self.low} and {self.high}")

    def scale(self, volume: Volume) -> Scale:
        values = _sample(volume.array)
        if not values.size:
            return Scale(0.0, 1.0)
        low, high = np.percentile(values, [self.low, self.high])
        if low == high:  # something small on an even background
            low, high = values.min(), values.max()
        if low == high:  # constant: everything becomes 0
            high = low + max(1.0, abs(low))
        return Scale(float(low), float(high))


def recipe_for(volume: Volume) -> IntensityRecipe:
    """The default recipe of a volume: a soft-tissue window for CT, percentiles for everything else."""
    modality = volume.modality or guess_modality(volume)
    return CtWindow() if modality == "CT" else MrPercentiles()


def guess_modality(volume: Volume) -> str:
    """Guess "CT" or "MR" for files that do not say; "MR" stands for all intensities without a unit.

    Values look like Hounsfield units when they reach down to fat or air (-90 or less in at least 0.5 % of the
    voxels), stay above -3100 (padding included), and at least 8 % of the voxels are soft tissue (-80 to 300).
    MR and 8-bit images begin at 0; normalised images have small negative values.
    """
    values = _sample(volume.array)
    if not values.size:
        return "MR"
    low = np.percentile(values, 0.5)
    tissue = np.mean((values > -80) & (values < 300))
    return "CT" if -3100 < low <= -90 and tissue >= 0.08 else "MR"


def _sample(array: np.ndarray) -> np.ndarray:
    """Finite values (N,) of the array, float64: all of them, or an even and repeatable choice when it is large."""
    flat = array.reshape(-1)
    step = max(1, flat.size // SAMPLE_VOXELS)
    while gcd(step, flat.size) > 1:  # a common factor would visit the same columns in every row
        step += 1
    values = flat[::step]
    return values[np.isfinite(values)].astype(np.float64)
