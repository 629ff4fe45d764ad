"""The frames of a DICOM SEG as the file states them: which segment, where, which pixels. Needs no more than pydicom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import SegmentationStorage

from ssmsam.dicom.file import read_dataset
from ssmsam.dicom.series import decoded
from ssmsam.volume.errors import UnreadableVolume

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
