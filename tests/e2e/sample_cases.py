"""The sample patients, their truth, and clicks that a user would make."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from serving import ROOT

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Grid, Volume
from ssmsam.volume.writing import write_volume

SAMPLES = ROOT / "sample-datasets"
CT, MR = "ct_01", "mr_04"
LABELS = {"liver": 1, "spleen": 2, "right kidney": 3, "left kidney": 4, "aorta": 5, "lesion": 6}

# What a click has to achieve at least. All thresholds of these tests are here.
SLICE_DICE = 0.8
"""One click in the middle of a kidney against the truth of that slice."""
VOLUME_DICE = 0.6
"""The same click, propagated, against the whole kidney."""
SAME_ANATOMY_DICE = 0.95
"""Masks from the same click in two storage orders."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The labels of a sample patient, (slices, rows, columns)."""

    array: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, name: str) -> Truth:
        volume = read_volume(SAMPLES / "abdomen_labels" / f"{name}.nii.gz")
        return cls(volume.array, volume.grid)

    def mask(self, label: str) -> np.ndarray:
        return self.array == LABELS[label]

    def click(self, label: str, *, k: int | None = None) -> list[int]:
        """[i, j, k] with the largest distance to the label's border, on its largest slice or on slice ``k``."""
        mask = self.mask(label)
        k = int(mask.sum(axis=(1, 2)).argmax()) if k is None else k
        depth = ndimage.distance_transform_edt(mask[k])
        j, i = np.unravel_index(depth.argmax(), depth.shape)
        return [int(i), int(j), k]


def thin_copy_of(name: str, folder: Path, *, step: int) -> None:
    """Every ``step``-th slice of a sample: the whole patient in a part of the time."""
    whole = read_volume(SAMPLES / "abdomen" / f"{name}.nii.gz")
    affine = whole.affine.copy()
    affine[:3, 2] *= step
    write_volume(Volume(whole.array[::step].copy(), affine, whole.modality), folder / f"{name}.nii.gz")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / max(1, int(one.sum() + other.sum()))


def resampled(mask: np.ndarray, grid: Grid, onto: Grid) -> np.ndarray:
    """A mask on another grid, by the nearest voxel in LPS millimetres."""
    ijk = np.indices(onto.shape[::-1]).reshape(3, -1).T
    source = np.rint(grid.to_ijk(onto.to_lps(ijk))).astype(int)
    inside = ((source >= 0) & (source < grid.shape[::-1])).all(axis=1)
    values = np.zeros(len(ijk), dtype=bool)
    i, j, k = source[inside].T
    values[inside] = mask[k, j, i]
    return values.reshape(onto.shape[::-1]).T


def copy_of(name: str, folder: Path) -> Path:
    """A sample volume copied into a folder of studies."""
    return Path(shutil.copy(SAMPLES / "abdomen" / f"{name}.nii.gz", folder))
