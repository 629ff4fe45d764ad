"""The frames of a DICOM SEG as the file states them: which segment, where, which pixels; and their comparison with the
mask that they were made of, by other code than wrote them. Needs no more than pydicom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import SegmentationStorage

from ssmsam.dicom.file import read_dataset
from ssmsam.dicom.series import decoded
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.volume import Grid, Volume

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
NUMBER_GROUP, NUMBER_OWNER, NUMBER_ELEMENT = 0x0063, "SSMSAM", 0x01
"""Where the user's label number is kept: segments of a BINARY file have to be numbered 1, 2, 3 ..."""


@dataclass(frozen=True)
class Segment:
    """One described segment. ``label`` is the user's number where the file was written here, else None."""

    number: int
    name: str
    label: int | None = None


@dataclass(frozen=True)
class SegmentFrame:
    """The pixels (rows, columns) bool of one segment on one plane.

    ``to_lps`` (3, 3) maps (column, row, 1) to LPS millimetres.
    """

    segment: int
    to_lps: np.ndarray
    pixels: np.ndarray


def read_seg_dataset(path: str | os.PathLike[str]) -> FileDataset:
    """The file's dataset. Raises UnreadableVolume when it is no DICOM SEG."""
    seg = read_dataset(Path(path))
    if str(seg.get("SOPClassUID") or "") not in (SegmentationStorage, LABEL_MAP_STORAGE):
        raise UnreadableVolume(
            f"{path}: a {seg.get('Modality') or 'DICOM'} object, not a segmentation. Give a DICOM SEG file."
        )
    return seg


def segments_of(seg: pydicom.Dataset) -> list[Segment]:
    """The described segments in the order of the file, without the background that a label map may describe as 0.

    Raises UnreadableVolume where two of them have one number.
    """
    described = [(int(item.SegmentNumber), item) for item in seg.get("SegmentSequence") or ()]
    found = [Segment(number, _name(item, number), _label(item)) for number, item in described if number != 0]
    if len({segment.number for segment in found}) < len(found):
        numbers = sorted(segment.number for segment in found)
        raise UnreadableVolume(f"several segments have one number: {numbers}. Export the segmentation again.")
    return found


def segment_frames(seg: FileDataset) -> Iterator[SegmentFrame]:
    """Every frame with its place. A frame of a label map is given once for each segment that it holds.

    FRACTIONAL pixels count from half of the largest value on. Raises UnreadableVolume for a frame without a place,
    for fewer or more frames than the header says, and where a fraction's whole is not known.
    """
    own = list(seg.get("PerFrameFunctionalGroupsSequence") or ())
    shared = (seg.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    count = _frame_count(seg, own)
    if count == 0:
        return
    is_label_map = seg.SOPClassUID == LABEL_MAP_STORAGE
    padding = seg.get("PixelPaddingValue", 0)
    pixels = _pixel_reader(seg, count)
    fractions = _Fractions(seg)
    for index in range(count):
        groups = (own[index] if own else pydicom.Dataset(), shared)
        to_lps = _to_lps(groups, index)
        stored = pixels(index)
        if is_label_map:
            for number in np.unique(stored[(stored > 0) & (stored != padding)]):
                yield SegmentFrame(int(number), to_lps, stored == number)
        else:
            number = int(_group(groups, "SegmentIdentificationSequence", index).ReferencedSegmentNumber)
            yield SegmentFrame(number, to_lps, fractions.inside(stored))
    fractions.expect_inside()


class _Fractions:
    """From which stored value on a pixel belongs to its segment: from half of the whole; in a BINARY file from 1."""

    def __init__(self, seg: pydicom.Dataset) -> None:
        stated = seg.get("MaximumFractionalValue")
        is_fractional = str(seg.get("SegmentationType") or ("" if stated is None else "FRACTIONAL")) == "FRACTIONAL"
        self._is_stated = not is_fractional or bool(stated)
        self._half = float(stated) / 2 if is_fractional and stated else 0.5
        self._largest = 0

    def inside(self, stored: np.ndarray) -> np.ndarray:
        self._largest = max(self._largest, int(stored.max(initial=0)))
        if self._largest > 1 and not self._is_stated:
            raise UnreadableVolume(
                "fractions up to an unknown whole (no MaximumFractionalValue). Export the segmentation as BINARY."
            )
        return stored >= self._half

    def expect_inside(self) -> None:
        """A program that writes 0 and 1 under a whole of 255 means another thing than nothing."""
        if 0 < self._largest < self._half:
            raise UnreadableVolume(
                f"no fraction reaches a half: the largest is {self._largest} of {self._half * 2:g}. "
                "Export the segmentation as BINARY."
            )


def _frame_count(seg: pydicom.Dataset, described: Sequence[pydicom.Dataset]) -> int:
    stated = seg.get("NumberOfFrames")
    count = 1 if stated in (None, "") else int(stated)
    if count < 0 or (described and len(described) != count):
        raise UnreadableVolume(
            f"its header says {count} frames and describes {len(described)}. Export the segmentation again."
        )
    return count


def _name(item: pydicom.Dataset, number: int) -> str:
    said = item.get("SegmentLabel") or ""
    name = said if isinstance(said, str) else "\\".join(map(str, said))  # a backslash makes several values of one
    return " ".join(name.split()) or f"segment {number}"  # a line break is none in a label's name


def _label(item: pydicom.Dataset) -> int | None:
    try:
        value = item.private_block(NUMBER_GROUP, NUMBER_OWNER)[NUMBER_ELEMENT].value
    except KeyError:
        return None
    return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)  # bytes: implicit VR


def _group(groups: tuple[pydicom.Dataset, pydicom.Dataset], name: str, index: int) -> pydicom.Dataset:
    """The functional group of one frame: its own, or the one that all frames share."""
    for group in groups:
        if group.get(name):
            return group[name][0]
    raise UnreadableVolume(f"frame {index + 1} of the segmentation has no {name}. Export the segmentation again.")


def _to_lps(groups: tuple[pydicom.Dataset, pydicom.Dataset], index: int) -> np.ndarray:
    orientation = _group(groups, "PlaneOrientationSequence", index).ImageOrientationPatient
    position = _group(groups, "PlanePositionSequence", index).ImagePositionPatient
    between_rows, between_columns = (float(mm) for mm in _group(groups, "PixelMeasuresSequence", index).PixelSpacing)
    along_row, along_column = np.array(orientation, dtype=np.float64).reshape(2, 3)
    return np.stack(
        [along_row * between_columns, along_column * between_rows, np.array(position, dtype=np.float64)], axis=1
    )


def _pixel_reader(seg: FileDataset, count: int) -> Callable[[int], np.ndarray]:
    """A function from frame index to stored values (rows, columns); one frame at a time where nothing is compressed."""
    rows, columns, bits = int(seg.Rows), int(seg.Columns), int(seg.BitsAllocated)
    if seg.file_meta.TransferSyntaxUID.is_encapsulated:
        frames = decoded(seg, Path(str(seg.filename)))
        return lambda index: frames[index]
    if "PixelData" not in seg:
        raise UnreadableVolume("no pixels in it. Export the segmentation again.")
    if bits not in (1, 8, 16) or not seg.is_little_endian:
        raise UnreadableVolume(f"pixels of {bits} bits, or big endian. Export the segmentation again.")
    data = np.frombuffer(seg.PixelData, dtype=np.uint8)
    size = rows * columns
    if size == 0 or 2 * count * size * bits <= data.size * 8:
        raise UnreadableVolume(
            f"its pixels are not those of {count} frames of {rows} by {columns}: they are {data.size} bytes. "
            "Export the segmentation again."
        )
    if count * size * bits > data.size * 8:
        raise UnreadableVolume(
            f"its pixels are cut off: {data.size} bytes for {count} frames. Export the segmentation again."
        )

    def frame(index: int) -> np.ndarray:
        if bits == 1:  # frames follow one another without padding: one may start inside a byte
            start = index * size
            packed = data[start // 8 : (start + size + 7) // 8]
            stored = np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size]
        else:
            width = bits // 8
            stored = data[index * size * width : (index + 1) * size * width].view(f"<u{width}")
        return stored.reshape(rows, columns)

    return frame


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
