"""A DICOM SEG to a mask on the grid of its image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import FileDataset

from ssmsam.dicom.seg_check import Segment, SegmentFrame, read_seg_dataset, segment_frames, segments_of
from ssmsam.volume.errors import UnreadableVolume, one_error
from ssmsam.volume.volume import Grid, Volume

OFF_GRID = 0.45
"""How far, in voxels, a frame may lie from the voxels that it is put into. From a half on it could be either of two."""

BACKGROUND = "background"
"""The name, in any spelling, of a segment that says where no label is."""

FARTHEST = 1e9
"""Voxels from the first one of the image within which a frame may lie: whole numbers are exact there."""


class SegMask(NamedTuple):
    """What DICOM SEG files say on the grid of an image.

    ``volume`` holds label values (uint8, or uint16 from 256 on). ``labels`` gives the value of every described
    segment, those without a voxel included. ``overlap`` counts voxels that more than one label claimed. ``notes`` says
    in sentences what a single value for each voxel cannot. ``source`` gives, for each label, which of the files it is
    from, and ``left_out`` why which of them is not read: both count from 0.
    """

    volume: Volume
    labels: dict[str, int]
    overlap: int
    notes: tuple[str, ...]
    source: dict[str, int]
    left_out: dict[int, str]


def read_seg(path: str | os.PathLike[str], grid: Grid) -> SegMask:
    """Read a BINARY, FRACTIONAL (from a half on) or LABELMAP file onto ``grid``, by the place of every frame.

    Frames may be stored in any order, flipped or turned against the grid, or cover only a part of it; nothing is
    resampled. A segment gets the number it had when it was written here, else its segment number, else the next free
    one. Segments of one name are one label. Where segments overlap, the smaller covers the larger, as a lesion its
    organ, in whatever order they are described; of equal ones the later.

    Raises UnreadableVolume when the file is no segmentation, or does not fit the grid.
    """
    return read_segs([path], grid)


def read_segs(paths: Sequence[str | os.PathLike[str]], grid: Grid) -> SegMask:
    """Read several files of one image as one mask, the newest first: a label is what the newest file says that has it.

    Files that cannot be read are left out; raises UnreadableVolume when all are. Else as :func:`read_seg`.
    """
    files: dict[int, _SegFile] = {}
    errors: dict[int, UnreadableVolume] = {}
    for n, path in enumerate(paths):
        try:
            files[n] = _open(Path(path), grid)
        except UnreadableVolume as error:
            errors[n] = error
    if not files:
        raise errors[0]
    source: dict[str, int] = {}
    for n, file in files.items():
        for segment in file.segments:
            source.setdefault(segment.name, n)
    nothing = sorted(name for name in source if name.casefold() == BACKGROUND)
    source = {name: n for name, n in source.items() if name not in nothing}
    chosen = [(n, segment) for n in files for segment in files[n].segments if source.get(segment.name) == n]
    values = _values([segment for _, segment in chosen])
    # the oldest file first, so that of segments of one size the later covers
    covering = sorted(sorted(chosen, key=lambda one: -one[0]), key=lambda one: -files[one[0]].voxels[one[1].number])
    owner, hidden, overlap = _painted(files, [(n, one.number, values[one.name]) for n, one in covering], grid)
    value_of = np.array([0, *(values[one.name] for _, one in covering)])
    array = value_of.astype(np.uint8 if value_of.max() < 256 else np.uint16)[owner]
    first = next(iter(files.values()))
    volume = Volume(array, grid.affine, "", first.series_uid, first.frame_of_reference_uid)
    notes = (
        *(f"a segment named {name} is no label" for name in nothing),
        *_same_names([one for _, one in chosen]),
        *_overlap_note(values, hidden, overlap),
    )
    return SegMask(volume, values, overlap, notes, source, {n: str(error) for n, error in errors.items()})


class _SegFile(NamedTuple):
    """A file whose every frame lies on the grid, and how many voxels each segment number claims."""

    seg: FileDataset
    segments: list[Segment]
    voxels: Counter[int]
    series_uid: str
    frame_of_reference_uid: str


def _open(path: Path, grid: Grid) -> _SegFile:
    with one_error(path):
        seg = read_seg_dataset(path)
        segments = segments_of(seg)
        voxels = _claimed(seg, {segment.number for segment in segments}, grid)
        return _SegFile(seg, segments, voxels, _source_series(seg), str(seg.get("FrameOfReferenceUID") or ""))


def _claimed(seg: FileDataset, described: set[int], grid: Grid) -> Counter[int]:
    """Voxels of each segment number. Raises UnreadableVolume unless every frame fits the grid."""
    voxels: Counter[int] = Counter()
    seen: set[tuple[int, bytes]] = set()
    slices: set[int] = set()
    for frame in segment_frames(seg):
        if frame.segment not in described:
            raise UnreadableVolume(f"segment {frame.segment} is not described. Export the segmentation again.")
        steps, start = _on_grid(frame, grid)
        if (frame.segment, start.tobytes()) in seen:
            raise UnreadableVolume("its slices are finer than the image's. Resample it to the image first.")
        seen.add((frame.segment, start.tobytes()))
        slices.add(int(start @ (1 - np.abs(steps).sum(axis=1))))
        voxels[frame.segment] += len(_voxels(frame, grid)[0])
    _expect_all_slices(seg, grid, slices)
    return voxels


def _painted(
    files: Mapping[int, _SegFile], layers: Sequence[tuple[int, int, int]], grid: Grid
) -> tuple[np.ndarray, Counter[int], int]:
    """Each voxel's layer, counted from 1 (0: none); the hidden voxels of each label value; the voxels claimed twice.

    ``layers`` are (file, segment number, label value); a later one covers an earlier.
    """
    rank = {(n, number): layer for layer, (n, number, _) in enumerate(layers, 1)}
    value_of = np.array([0, *(value for _, _, value in layers)])
    owner = np.zeros(grid.shape, dtype=np.uint16)
    contested = np.zeros(grid.shape, dtype=bool)
    hidden: Counter[int] = Counter()
    for n, file in files.items():
        for frame in segment_frames(file.seg):
            layer = rank.get((n, frame.segment))
            if layer is None:  # a newer file has this label
                continue
            at = _voxels(frame, grid)
            here = owner[at]
            differs = (here > 0) & (value_of[here] != value_of[layer])
            contested[at] |= differs
            hidden.update(value_of[np.minimum(here[differs], layer)].tolist())
            owner[at] = np.maximum(here, layer)
    return owner, hidden, int(contested.sum())


def _voxels(frame: SegmentFrame, grid: Grid) -> tuple[np.ndarray, ...]:
    """The (slices, rows, columns) in the grid of the frame's pixels. Raises UnreadableVolume for those beyond it."""
    steps, start = _on_grid(frame, grid)
    j, i = np.nonzero(frame.pixels)
    place = (steps @ np.stack([i, j]) + start[:, None])[::-1]
    if place.size and (place.min() < 0 or (place.max(axis=1) >= grid.shape).any()):
        raise UnreadableVolume("it reaches beyond the image. Is it the segmentation of another series?")
    return tuple(place)


def _same_names(segments: Sequence[Segment]) -> list[str]:
    counts = Counter(segment.name for segment in segments)
    return [f"{count} segments named {name} are one label" for name, count in counts.items() if count > 1]


def _overlap_note(values: Mapping[str, int], hidden: Mapping[int, int], overlap: int) -> list[str]:
    if not overlap:
        return []
    hidden_of = ", ".join(f"{hidden[value]} of {name}" for name, value in values.items() if hidden.get(value))
    return [
        f"segments overlap in {overlap} voxels; the smaller covers the larger there, which hides voxels: {hidden_of}"
    ]


def _on_grid(frame: SegmentFrame, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Whole steps (3, 2) through the grid's (column, row, slice) for a column and a row of the frame, and the start."""
    exact = np.linalg.inv(grid.affine)[:3] @ np.vstack([frame.to_lps, [0, 0, 1]])
    if not (np.abs(exact) < FARTHEST).all():
        raise UnreadableVolume("a frame lies nowhere near the image. Export the segmentation again.")
    whole = np.rint(exact).astype(np.int64)
    steps, start = whole[:, :2], whole[:, 2]
    rows, columns = frame.pixels.shape
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1, 1, 1, 1]])
    fits = np.abs((exact - whole) @ corners).max() <= OFF_GRID
    if not fits or (np.abs(steps).sum(axis=0) != 1).any() or (np.abs(steps).sum(axis=1) > 1).any():
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


def _values(segments: Sequence[Segment]) -> dict[str, int]:
    """A value for every name, never one value for two names."""
    values: dict[str, int] = {}
    used = {0}
    free = (value for value in count(1) if value not in used)
    for preference in (lambda one: one.label, lambda one: one.number, lambda _: next(free)):
        for segment in segments:
            if segment.name not in values and (value := preference(segment)) is not None and value not in used:
                values[segment.name] = value
                used.add(value)
    return {segment.name: values[segment.name] for segment in segments}
