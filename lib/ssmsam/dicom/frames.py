"""The images in a DICOM file: one, or the frames of a multi-frame file, each described as if it were a file of its own.

Enhanced files say once what all frames share, and of each frame what is its own, in groups of attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from ssmsam.volume.errors import UnreadableVolume

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
