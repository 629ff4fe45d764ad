"""A DICOM SEG to a mask on the grid of its image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pydicom

from ssmsam.imaging.dicom_seg_frames import Segment, SegmentFrame, read_seg_dataset, segment_frames, segments_of
from ssmsam.imaging.unreadable import UnreadableVolume
from ssmsam.imaging.volume import Grid, Volume

OFF_GRID = 0.45
"""How far, in voxels, a frame may lie from the voxels that it is put into. From a half on it could be either of two."""


class SegMask(NamedTuple):
    """What a DICOM SEG says on the grid of an image.

    ``volume`` holds label values (uint8, or uint16 from 256 on). ``labels`` gives the value of every described
    segment, those without a voxel included. ``overlap`` counts voxels that more than one segment claimed.
    """

    volume: Volume
    labels: dict[str, int]
    overlap: int


def read_seg(path: str | os.PathLike[str], grid: Grid, *, labels: Mapping[str, int] | None = None) -> SegMask:
    """Read a BINARY, FRACTIONAL (from a half on) or LABELMAP file onto ``grid``, by the place of every frame.

    Frames may be stored in any order, flipped or turned against the grid, or cover only a part of it; nothing is
    resampled. A segment gets the value that ``labels`` has for its name, else the number it had when it was written
    here, else its segment number, else the next free one. Segments of one name are one label. Where segments overlap,
    the one described later covers the earlier, as a lesion described after its organ does.

    Raises UnreadableVolume when the file is no segmentation, or does not fit the grid.
    """
    seg = read_seg_dataset(path)
    segments = segments_of(seg)
    values = _values(segments, labels or {})
    value_of = np.array([0, *(values[segment.name] for segment in segments)])
    try:
        owner, overlap = _owners(seg, grid, {segment.number: n for n, segment in enumerate(segments, 1)}, value_of)
    except UnreadableVolume as error:
        raise UnreadableVolume(f"{path}: {error}") from error
    array = value_of.astype(np.uint8 if value_of.max() < 256 else np.uint16)[owner]
    frame_of_reference = str(seg.get("FrameOfReferenceUID") or "")
    return SegMask(Volume(array, grid.affine, "", _source_series(seg), frame_of_reference), values, overlap)


def _owners(seg: pydicom.Dataset, grid: Grid, rank: Mapping[int, int], value_of: np.ndarray) -> tuple[np.ndarray, int]:
    """The rank of the segment that each voxel goes to, 0 for none, and how many voxels had several claims."""
    owner = np.zeros(grid.shape, dtype=np.uint16)
    contested = np.zeros(grid.shape, dtype=bool)
    seen: set[tuple[int, bytes]] = set()
    slices: set[int] = set()
    for frame in segment_frames(seg):
        if frame.segment not in rank:
            raise UnreadableVolume(f"segment {frame.segment} is not described. Export the segmentation again.")
        steps, start = _on_grid(frame, grid)
        if (frame.segment, start.tobytes()) in seen:
            raise UnreadableVolume("its slices are finer than the image's. Resample it to the image first.")
        seen.add((frame.segment, start.tobytes()))
        slices.add(int(start @ (1 - np.abs(steps).sum(axis=1))))
        j, i = np.nonzero(frame.pixels)
        place = (steps @ np.stack([i, j]) + start[:, None])[::-1]
        if place.size and (place.min() < 0 or (place.max(axis=1) >= grid.shape).any()):
            raise UnreadableVolume("it reaches beyond the image. Is it the segmentation of another series?")
        at = tuple(place)
        here = owner[at]
        contested[at] |= (here > 0) & (value_of[here] != value_of[rank[frame.segment]])
        owner[at] = np.maximum(here, rank[frame.segment])
    _expect_all_slices(seg, grid, slices)
    return owner, int(contested.sum())


def _on_grid(frame: SegmentFrame, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Whole steps (3, 2) through the grid's (column, row, slice) for a column and a row of the frame, and the start."""
    exact = np.linalg.inv(grid.affine)[:3] @ np.vstack([frame.to_lps, [0, 0, 1]])
    whole = np.rint(exact).astype(np.int64)
    steps, start = whole[:, :2], whole[:, 2]
    rows, columns = frame.pixels.shape
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1, 1, 1, 1]])
    is_off = np.abs((exact - whole) @ corners).max() > OFF_GRID
    if is_off or (np.abs(steps).sum(axis=0) != 1).any() or (np.abs(steps).sum(axis=1) > 1).any():
        raise UnreadableVolume(
            "its voxels do not lie on those of the image (another spacing, angle or position). "
            "Resample it to the image first, or choose the series that it was made on."
        )
    return steps, start


def _expect_all_slices(seg: pydicom.Dataset, grid: Grid, slices: set[int]) -> None:
    """A segmentation with thicker slices than the image would leave gaps between them: refused."""
    shared = (seg.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    measures = (shared.get("PixelMeasuresSequence") or [pydicom.Dataset()])[0]
    between = float(measures.get("SpacingBetweenSlices") or 0)
    if len(slices) > 1 and between > 1.5 * max(grid.spacing) and np.diff(sorted(slices)).min() > 1:
        raise UnreadableVolume(
            f"its slices are {between:g} mm apart, coarser than the image's. Resample it to the image first."
        )


def _source_series(seg: pydicom.Dataset) -> str:
    """The series that the segmentation says it is of, "" when it does not say."""
    referenced = seg.get("ReferencedSeriesSequence")
    return str(referenced[0].get("SeriesInstanceUID") or "") if referenced else ""


def _values(segments: Sequence[Segment], known: Mapping[str, int]) -> dict[str, int]:
    """A value for every name, never one value for two names."""
    values = {segment.name: known[segment.name] for segment in segments if segment.name in known}
    used = set(known.values()) | {0}
    for wish in (lambda segment: segment.label, lambda segment: segment.number):
        for segment in segments:
            value = wish(segment)
            if segment.name not in values and value is not None and value not in used:
                values[segment.name] = value
                used.add(value)
    for segment in segments:
        if segment.name not in values:
            values[segment.name] = next(value for value in range(1, len(used) + 2) if value not in used)
            used.add(values[segment.name])
    return {segment.name: values[segment.name] for segment in segments}
