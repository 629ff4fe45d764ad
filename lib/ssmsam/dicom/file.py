"""One DICOM file: whether it is one, its dataset, whatever its age and packing, and the images in it.

A file has one image, or the frames of a multi-frame file, each of which is described as if it were a file of its own.
Enhanced files say once what all frames share, and of each frame what is its own, in groups of attributes.
"""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from ssmsam.volume.errors import UnreadableVolume, one_error

PREAMBLE, MARK = 128, b"DICM"
META_LENGTH = b"\x02\0\0\0UL\x04\0"
"""How the length of the file's meta information begins, right after the mark."""

MOST_INFLATED = 1 << 29
"""Bytes that a deflated file may become. *Guess*: a hundred segments on 300 slices of 512 x 512 pixels are a quarter
less, and the files of a series are far smaller."""


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: the mark after 128 bytes, or, as old devices write, the first element."""
    if not path.is_file():  # reading a pipe or a device may never end
        return False
    head = _head(path)
    return _has_mark(head) or _is_first_element(head)


def read_dataset(path: Path, *, tags: Sequence[str] | None = None, pixels: bool = True) -> FileDataset:
    """The dataset of a file, with or without the preamble; only ``tags`` where they are named.

    Raises UnreadableVolume for what is no DICOM file, or one that inflates to more than it may.
    """
    with one_error(path):
        head = _head(path)
        if not (_has_mark(head) or _is_first_element(head)):
            raise UnreadableVolume(f"{path}: not a readable DICOM file. Export it again.")
        if DeflatedExplicitVRLittleEndian.encode() in head:
            _expect_bounded(path)
        chosen = None if tags is None else list(tags)
        return pydicom.dcmread(path, force=True, stop_before_pixels=not pixels, specific_tags=chosen)


def new_file(storage: UID, instance_uid: UID) -> FileDataset:
    """An object of a storage class, to be written uncompressed, little-endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SOPClassUID, data.SOPInstanceUID = storage, instance_uid
    return data


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1024)


def _has_mark(head: bytes) -> bool:
    return head[PREAMBLE:][: len(MARK)] == MARK


def _is_first_element(head: bytes) -> bool:
    """Whether ``head`` begins with an element of group 0002 or 0008, as datasets do, in any byte order."""
    if len(head) < PREAMBLE + len(MARK):
        return False
    for order in "<>":
        group, element, implicit_length = struct.unpack_from(f"{order}HHL", head)
        is_explicit = head[4:6].isalpha() and head[4:6].isupper()
        if group in (0x0002, 0x0008) and element < 0x0100 and (is_explicit or implicit_length < len(head)):
            return True
    return False


def _expect_bounded(path: Path) -> None:
    """Refuse a deflated file that inflates to gigabytes: pydicom would keep all of it."""
    with open(path, "rb") as file:
        file.seek(PREAMBLE + len(MARK))
        if file.read(len(META_LENGTH)) != META_LENGTH:
            raise UnreadableVolume(f"{path}: a deflated file without FileMetaInformationGroupLength. Export it again.")
        (length,) = struct.unpack("<L", file.read(4))
        file.seek(length, 1)
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := file.read(1 << 16):
            while packed:
                size += len(inflate.decompress(packed, 1 << 20))
                packed = inflate.unconsumed_tail
                if size > MOST_INFLATED:
                    raise UnreadableVolume(
                        f"{path}: it inflates to more than {MOST_INFLATED >> 20} MiB. Export it without compression."
                    )


SHARED, OWN = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"

FRAME_TAGS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "RescaleSlope", "RescaleIntercept", "StackID", "TemporalPositionIndex", "EffectiveEchoTime", "InversionTimes",
    "DiffusionBValue", "NominalCardiacTriggerDelayTime", "FrameType",
)  # fmt: skip
"""What the groups say that a file of one image says at its top, or that tells frames at one place apart."""

ONE_VOLUME = {"StackID": "stacks", "EffectiveEchoTime": "echoes", "DiffusionBValue": "b-values"}
"""Frames that differ in one of these are several volumes, wherever they lie."""

APART = {
    **ONE_VOLUME, "EchoTime": "echoes", "TemporalPositionIndex": "points in time",
    "TemporalPositionIdentifier": "points in time", "NominalCardiacTriggerDelayTime": "phases of the heart",
    "TriggerTime": "phases of the heart", "InversionTimes": "inversion times", "InversionTime": "inversion times",
    "AcquisitionNumber": "acquisitions", "FrameType": "kinds of image", "ImageType": "kinds of image",
}  # fmt: skip
"""What images at one place may differ in, and how it is called."""

MOST_NAMED = 6
"""Values that a message lists: a *guess*, of words alone."""


def frame_headers(header: Dataset, path: Path) -> list[Dataset]:
    """What ``header`` says of each frame, in the order of the file, at the top of a dataset; itself where the file has
    one image and no groups.

    ``ReferencedFrameNumber`` is what others name the frame by, where the file has several. Raises UnreadableVolume.
    """
    count, own = int(header.get("NumberOfFrames") or 1), list(header.get(OWN) or ())
    shared = list(header.get(SHARED) or ())[:1]
    if count > 1 and not own:
        raise UnreadableVolume(
            f"{path}: a multi-frame image that does not say where each frame lies. Convert it to one file per slice "
            "(dcm4che's emf2sf) or to NIfTI (dcm2niix)."
        )
    if not own and not shared:
        return [header]
    if own and len(own) != count:
        raise UnreadableVolume(
            f"{path}: a multi-frame image of {count} frames that describes {len(own)}. Export it again."
        )
    bare = copy.copy(header)
    for name in (SHARED, OWN, "NumberOfFrames", "PixelData"):
        bare.pop(name, None)
    return [_frame(bare, [*shared, *own[n : n + 1]], n + 1 if count > 1 else None) for n in range(count)]


def _frame(bare: Dataset, groups: Sequence[Dataset], number: int | None) -> Dataset:
    frame = copy.copy(bare)
    for item in _items(groups):
        for name in FRAME_TAGS:
            if name in item:
                frame[name] = item[name]
    if number is not None:
        frame.ReferencedFrameNumber = number
    return frame


def _items(groups: Sequence[Dataset]) -> Iterator[Dataset]:
    """The first item of each group: the others of diffusion and timing groups say nothing of the place."""
    for group in groups:
        for element in group:
            if element.VR == "SQ" and element.value:
                yield element.value[0]


def reference(header: Dataset, *, frame: bool = False) -> Dataset:
    """How other objects refer to an image, and where asked for, to the ``frame`` of it that the header is of."""
    found = Dataset()
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frame and "ReferencedFrameNumber" in header:
        found.ReferencedFrameNumber = header.ReferencedFrameNumber
    return found


def what_differs(headers: Sequence[Dataset], names: Sequence[str] = tuple(APART)) -> str:
    """In what images differ, as in "2 echoes (4.6, 9.2)"; "" where they do not differ in any of ``names``."""
    for name in names:
        found = sorted({_text(header.get(name)) for header in headers} - {""}, key=_in_order)
        if len(found) > 1:
            listed = ", ".join(found[:MOST_NAMED]) + (", ..." if len(found) > MOST_NAMED else "")
            return f"{len(found)} {APART[name]} ({listed})"
    return ""


def _text(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, float | int):
        return f"{float(value):.6g}"
    return str(value) if isinstance(value, str) else "/".join(map(str, value)) if hasattr(value, "__iter__") else ""


def _in_order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
