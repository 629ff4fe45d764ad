"""A DICOM SEG read back and compared with the mask that it was made of, by other code than wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from ssmsam.dicom.seg_frames import SegmentFrame, read_seg_dataset, segment_frames, segments_of
from ssmsam.volume.volume import Grid, Volume

EXACT_MM = 1e-2
"""Centroids closer than this are equal: decimal strings in DICOM files round more finely."""


Covered: TypeAlias = Mapping[str, np.ndarray]
"""Label -> where (slices, rows, columns) bool it lies beneath another one, which a label map cannot show."""
NOTHING_COVERED: Covered = MappingProxyType({})


def label_mask(mask: Volume, name: str, value: int, covered: Covered, *, at: int | slice = slice(None)) -> np.ndarray:
    """Where a label is, beneath others too: (slices, rows, columns) bool, or (rows, columns) ``at`` a slice."""
    here = mask.array[at] == value
    return here | covered[name][at] if name in covered else here


class SegMismatch(RuntimeError):
    """What a written DICOM SEG says is not what the mask says. The file is not kept."""


def check_seg(
    path: Path,
    mask: Volume,
    labels: Mapping[str, int],
    *,
    jitter_mm: float = 0.0,
    covered: Covered = NOTHING_COVERED,
) -> None:
    """Compare the file at ``path`` with ``mask`` and what is ``covered`` in it, segment by segment: names, numbers,
    voxels and centroids.

    ``labels`` gives the value of every segment in the order of the file. ``jitter_mm`` is how far the slices of the
    series lie from an even grid. Raises SegMismatch that names the segment and both figures.
    """
    seg = read_seg_dataset(path)
    segments = segments_of(seg)
    described = [(segment.name, segment.label) for segment in segments]
    if described != list(labels.items()):
        raise SegMismatch(f"{path.name} describes the segments {dict(described)} instead of {dict(labels)}.")
    name_of = {segment.number: segment.name for segment in segments}
    moments = {name: np.zeros(4) for name in labels}
    for frame in segment_frames(seg):
        name = name_of.get(frame.segment)
        if name is None:
            raise SegMismatch(f"{path.name}: a frame belongs to segment {frame.segment}, which is not described.")
        k = _slice_of(frame, mask.grid)
        if k is None or not np.array_equal(frame.pixels, label_mask(mask, name, labels[name], covered, at=k)):
            raise SegMismatch(f"{path.name}: the pixels at slice {k} are not those of {name}.")
        moment = _moment(frame.pixels)
        moments[name] += [*(frame.to_lps @ moment), moment[2]]
    for name, value in labels.items():
        planes = [_moment(label_mask(mask, name, value, covered, at=k)) for k in range(mask.shape[0])]
        x, y, count = np.sum(planes, axis=0)
        z = sum(k * inside for k, (_, _, inside) in enumerate(planes))
        if moments[name][3] != count:
            raise SegMismatch(f"{path.name}: {name} has {moments[name][3]:.0f} voxels instead of {count:.0f}.")
        centroid = mask.grid.to_lps(np.array([[x, y, z]]) / count)[0]
        distance = float(np.linalg.norm(moments[name][:3] / count - centroid))
        if distance > EXACT_MM + jitter_mm:
            raise SegMismatch(f"{path.name}: the centre of {name} is off by {distance:.3f} mm.")


def _slice_of(frame: SegmentFrame, grid: Grid) -> int | None:
    """The slice at the frame's place, None where there is none."""
    rows, columns = frame.pixels.shape
    centre = frame.to_lps @ ((columns - 1) / 2, (rows - 1) / 2, 1)
    k = int(np.rint(grid.to_ijk(centre[None])[0, 2]))
    return k if 0 <= k < grid.shape[0] else None


def _moment(pixels: np.ndarray) -> np.ndarray:
    """(sum of columns, sum of rows, count) of a slice's pixels (rows, columns) bool."""
    per_row, per_column = pixels.sum(axis=1), pixels.sum(axis=0)
    return np.array([per_column @ np.arange(len(per_column)), per_row @ np.arange(len(per_row)), per_row.sum()], float)
