"""DICOM SEG files as other programs write them: any segments, in any of the standard's ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from ssmsam.dicom.series import find_series

Planted = tuple[int, str, np.ndarray]
"""Number, name, and stored values (slices, rows, columns) of a segment."""


def plant_seg(
    path: Path,
    series: Path,
    segments: Sequence[Planted],
    *,
    kind: str = "BINARY",
    whole: int | None = None,
    names: str = "series",
    written: str = "120000",
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """``names`` is what the file says of its images: "series", "frames", "images" or "nothing"."""
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in find_series(series).files]
    first, references = slices[0], [_item(_reference(one)) for one in slices]
    seg = pydicom.FileDataset(str(path), {}, preamble=bytes(128), file_meta=FileMetaDataset())
    seg.is_little_endian, seg.is_implicit_VR = True, False
    seg.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.Modality = first.StudyInstanceUID, generate_uid(), "SEG"
    seg.PatientID, seg.Manufacturer = first.PatientID, "another"
    seg.ContentDate = seg.SeriesDate = "20240102"
    seg.ContentTime = seg.SeriesTime = written
    seg.FrameOfReferenceUID, seg.SegmentationType = first.FrameOfReferenceUID, kind
    seg.Rows, seg.Columns, seg.SamplesPerPixel, seg.PhotometricInterpretation = (
        first.Rows,
        first.Columns,
        1,
        "MONOCHROME2",
    )
    seg.BitsAllocated = seg.BitsStored = 1 if kind == "BINARY" else 8
    seg.HighBit, seg.PixelRepresentation = seg.BitsStored - 1, 0
    if whole is not None:
        seg.MaximumFractionalValue = whole
    seg.SegmentSequence = [_item({"SegmentNumber": number, "SegmentLabel": name}) for number, name, _ in segments]
    seg.SharedFunctionalGroupsSequence = [
        _item(
            {
                "PixelMeasuresSequence": [_item({"PixelSpacing": first.PixelSpacing})],
                "PlaneOrientationSequence": [_item({"ImageOrientationPatient": first.ImageOrientationPatient})],
            }
        )
    ]
    shown = [(number, k, values[k]) for number, _, values in segments for k in range(len(slices)) if values[k].any()]
    seg.PerFrameFunctionalGroupsSequence = [_groups(number, slices[k]) for number, k, _ in shown]
    seg.NumberOfFrames = len(shown)
    if names == "series":
        said = {"SeriesInstanceUID": first.SeriesInstanceUID, "ReferencedInstanceSequence": references}
        seg.ReferencedSeriesSequence = [_item(said)]
    elif names == "images":
        seg.ReferencedImageSequence = references
    elif names == "frames":
        for groups, (_, k, _) in zip(seg.PerFrameFunctionalGroupsSequence, shown, strict=True):
            groups.DerivationImageSequence = [_item({"SourceImageSequence": [references[k]]})]
    values = np.array([frame for _, _, frame in shown], dtype=np.uint8)
    data = np.packbits(values.ravel(), bitorder="little") if kind == "BINARY" else values
    seg.PixelData = data.tobytes() + bytes(data.size % 2)
    if edit is not None:
        edit(seg)
    seg.save_as(path, write_like_original=False)
    return path


def _groups(number: int, header: Dataset) -> Dataset:
    return _item(
        {
            "PlanePositionSequence": [_item({"ImagePositionPatient": header.ImagePositionPatient})],
            "SegmentIdentificationSequence": [_item({"ReferencedSegmentNumber": number})],
        }
    )


def _reference(header: Dataset) -> dict[str, object]:
    return {"ReferencedSOPClassUID": header.SOPClassUID, "ReferencedSOPInstanceUID": header.SOPInstanceUID}


def _item(values: dict[str, object]) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
