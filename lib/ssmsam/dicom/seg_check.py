"""A DICOM SEG read back and compared with the mask that it was made of, by other code than wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from ssmsam.dicom.seg_frames import read_seg_dataset, segment_frames, segments_of
from ssmsam.volume.volume import Volume

EXACT_MM = 1e-2
"""Centroids closer than this are equal: decimal strings in DICOM files round more finely."""


class SegMismatch(RuntimeError):
    """What a written DICOM SEG says is not what the mask says. The file is not kept."""


def check_seg(path: Path, mask: Volume, labels: Mapping[str, int], *, jitter_mm: float = 0.0) -> None:
    """Compare the file at ``path`` with ``mask``, segment by segment: names, numbers, voxels and centroids.

    ``labels`` gives the value of every segment in the order of the file. ``jitter_mm`` is how far the slices of the
    series lie from an even grid. Raises SegMismatch that names the segment and both figures.
    """
    seg = read_seg_dataset(path)
    described = {segment.name: segment.label for segment in segments_of(seg)}
    if list(described.items()) != list(labels.items()):
        raise SegMismatch(f"{path.name} describes the segments {described} instead of {dict(labels)}.")
    counts, sums = _read_back(path, seg, mask, list(labels.values()))
    for name, value in labels.items():
        count, centroid = _measure(mask, value)
        if counts[value] != count:
            raise SegMismatch(f"{path.name}: {name} has {counts[value]} voxels instead of {count}.")
        distance = float(np.linalg.norm(sums[value] / count - centroid))
        if distance > EXACT_MM + jitter_mm:
            raise SegMismatch(f"{path.name}: the centre of {name} is off by {distance:.3f} mm.")


def _read_back(
    path: Path, seg: FileDataset, mask: Volume, values: list[int]
) -> tuple[dict[int, int], dict[int, np.ndarray]]:
    """Voxels and summed LPS coordinates of each label value, from the frames and their own places alone."""
    value_of = {segment.number: value for segment, value in zip(segments_of(seg), values, strict=True)}
    counts = dict.fromkeys(values, 0)
    sums = {value: np.zeros(3) for value in values}
    for frame in segment_frames(seg):
        value = value_of.get(frame.segment)
        if value is None:
            raise SegMismatch(f"{path.name}: a frame belongs to segment {frame.segment}, which is not described.")
        _expect_slice(path, mask, value, frame.to_lps, frame.pixels)
        per_row, per_column = frame.pixels.sum(axis=1), frame.pixels.sum(axis=0)
        count = int(per_row.sum())
        moment = (per_column @ np.arange(len(per_column)), per_row @ np.arange(len(per_row)), count)
        counts[value] += count
        sums[value] += frame.to_lps @ np.array(moment, dtype=np.float64)
    return counts, sums


def _expect_slice(path: Path, mask: Volume, value: int, to_lps: np.ndarray, pixels: np.ndarray) -> None:
    """The frame's pixels are those of the mask's slice at its place."""
    slices, rows, columns = mask.shape
    centre = to_lps @ ((columns - 1) / 2, (rows - 1) / 2, 1)
    k = int(np.rint(mask.grid.to_ijk(centre[None])[0, 2]))
    if not 0 <= k < slices or not np.array_equal(pixels, mask.array[k] == value):
        raise SegMismatch(f"{path.name}: the pixels at slice {k} are not those of label {value}.")


def _measure(mask: Volume, value: int) -> tuple[int, np.ndarray]:
    """Voxels of a label and their mean place in LPS millimetres."""
    count, sums = 0, np.zeros(3)
    for k, plane in enumerate(mask.array):
        here = plane == value
        per_row, per_column = here.sum(axis=1), here.sum(axis=0)
        inside = int(per_row.sum())
        count += inside
        sums += (per_column @ np.arange(len(per_column)), per_row @ np.arange(len(per_row)), k * inside)
    return count, mask.grid.to_lps(sums[None] / count)[0]
