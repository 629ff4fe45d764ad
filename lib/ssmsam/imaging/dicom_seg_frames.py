"""The frames of a DICOM SEG as the file states them: which segment, where, which pixels. Needs no more than pydicom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from ssmsam.imaging.unreadable import UnreadableVolume

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


def read_seg_dataset(path: str | os.PathLike[str]) -> pydicom.Dataset:
    """The file's dataset. Raises UnreadableVolume when it is no DICOM SEG."""
    try:
        seg = pydicom.dcmread(Path(path))
    except (InvalidDicomError, OSError, EOFError) as error:
        raise UnreadableVolume(f"{path}: not a readable DICOM file. ({error})") from error
    if str(seg.get("SOPClassUID") or "") not in (SegmentationStorage, LABEL_MAP_STORAGE):
        raise UnreadableVolume(
            f"{path}: a {seg.get('Modality') or 'DICOM'} object, not a segmentation. Give a DICOM SEG file."
        )
    return seg


def segments_of(seg: pydicom.Dataset) -> list[Segment]:
    """The described segments in the order of the file, without the background that a label map may describe as 0."""
    return [
        Segment(int(item.SegmentNumber), str(item.get("SegmentLabel") or f"segment {item.SegmentNumber}"), _label(item))
        for item in seg.get("SegmentSequence") or ()
        if int(item.SegmentNumber) != 0
    ]


def segment_frames(seg: pydicom.Dataset) -> Iterator[SegmentFrame]:
    """Every frame with its place. A frame of a label map is given once for each segment that it holds.

    FRACTIONAL pixels count from half of the largest value on. Raises UnreadableVolume for a frame without a place.
    """
    is_label_map = seg.SOPClassUID == LABEL_MAP_STORAGE
    padding = seg.get("PixelPaddingValue", 0)
    half = float(seg.get("MaximumFractionalValue") or 1) / 2
    pixels = _pixel_reader(seg)
    own = seg.get("PerFrameFunctionalGroupsSequence") or [pydicom.Dataset()]
    shared = (seg.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    for index in range(int(seg.get("NumberOfFrames") or 1)):
        groups = (own[index] if index < len(own) else pydicom.Dataset(), shared)
        to_lps = _to_lps(groups, index)
        stored = pixels(index)
        if is_label_map:
            for number in np.unique(stored[(stored > 0) & (stored != padding)]):
                yield SegmentFrame(int(number), to_lps, stored == number)
        else:
            number = int(_group(groups, "SegmentIdentificationSequence", index).ReferencedSegmentNumber)
            yield SegmentFrame(number, to_lps, stored >= half)


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


def _pixel_reader(seg: pydicom.Dataset) -> Callable[[int], np.ndarray]:
    """A function from frame index to stored values (rows, columns); one frame at a time where nothing is compressed."""
    rows, columns = int(seg.Rows), int(seg.Columns)
    if seg.file_meta.TransferSyntaxUID.is_encapsulated:
        try:
            decoded = seg.pixel_array.reshape(-1, rows, columns)
        except Exception as error:  # the decoders raise what they like
            raise UnreadableVolume(
                f"the segmentation's pixels cannot be decoded. Store it uncompressed. ({error})"
            ) from error
        return lambda index: decoded[index]
    data = np.frombuffer(seg.PixelData, dtype=np.uint8)
    size, bits = rows * columns, int(seg.BitsAllocated)

    def frame(index: int) -> np.ndarray:
        if bits == 1:  # frames follow one another without padding: one may start inside a byte
            start = index * size
            packed = data[start // 8 : (start + size + 7) // 8]
            stored = np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size]
        else:
            width = bits // 8
            stored = data[index * size * width : (index + 1) * size * width].view(f"<u{width}")
        if len(stored) != size:
            raise UnreadableVolume(f"frame {index + 1} of the segmentation is cut off. Export the segmentation again.")
        return stored.reshape(rows, columns)

    return frame
