"""A mask to a DICOM SEG that belongs to the series it was drawn on."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DA, TM

from ssmsam.dicom.colors import RGB, cielab, distinct_colours
from ssmsam.dicom.file import read_dataset
from ssmsam.dicom.seg_check import check_seg
from ssmsam.dicom.seg_frames import NUMBER_ELEMENT, NUMBER_GROUP, NUMBER_OWNER
from ssmsam.dicom.series import DicomSeries, find_series
from ssmsam.dicom.terminology import PRIVATE_SCHEME, Code, Concept, concept_of
from ssmsam.files import whole_file
from ssmsam.volume.volume import Volume

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}


@dataclass(frozen=True)
class DicomPatient:
    """Who and what a written series claims to show. Dates are YYYYMMDD, times HHMMSS."""

    name: str
    patient_id: str
    description: str = ""
    date: str = "20240101"
    time: str = "120000"


def derived_uid(*parts: object) -> UID:
    """A valid UID (2.25 and a name-based UUID) that is the same whenever the parts are the same."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(map(str, parts))).int}")


def write_dicom_series(volume: Volume, folder: Path, *, patient: DicomPatient) -> None:
    """Write int16 or uint16 slices as CT or MR images named 0001.dcm, 0002.dcm ... in slice order.

    UIDs follow from the patient and the volume: the same input makes the same bytes. Raises ValueError for another
    modality, another type of voxel, or axes that are not right-handed (DICOM sorts slices along their normal).
    """
    if volume.modality not in STORAGE:
        raise ValueError(f"a DICOM series is written for CT or MR, got modality {volume.modality!r}")
    if volume.array.dtype not in (np.int16, np.uint16):
        raise ValueError(f"a DICOM series takes int16 or uint16 voxels, got {volume.array.dtype}")
    if np.linalg.det(volume.affine[:3, :3]) < 0:
        raise ValueError("a DICOM series needs right-handed axes: reverse the order of the slices first")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(volume.shape[0]):
        path = folder / f"{index + 1:04d}.dcm"
        _slice(volume, index, patient, path).save_as(path, write_like_original=False)


def _slice(volume: Volume, index: int, patient: DicomPatient, path: Path) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = STORAGE[volume.modality]
    meta.MediaStorageSOPInstanceUID = derived_uid(patient.patient_id, volume.digest, "instance", index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = derived_uid("ssmsam")
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.is_little_endian, header.is_implicit_VR = True, False
    _describe_patient(header, volume, patient)
    _describe_pixels(header, volume, index)
    if volume.modality == "MR":
        header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "RM", "NONE", ""
        header.MRAcquisitionType, header.EchoTime, header.EchoTrainLength = "2D", None, None
        header.RepetitionTime = None
    else:
        header.KVP, header.RescaleType = None, "HU"
    return header


def _describe_patient(header: pydicom.Dataset, volume: Volume, patient: DicomPatient) -> None:
    identity = (patient.patient_id, volume.digest)
    header.SpecificCharacterSet = "ISO_IR 100"
    header.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    header.SOPClassUID = STORAGE[volume.modality]
    header.PatientName, header.PatientID = patient.name, patient.patient_id
    header.PatientBirthDate, header.PatientSex = "", ""
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = patient.date
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = patient.time
    header.AccessionNumber, header.ReferringPhysicianName, header.StudyID = "", "", "1"
    header.StudyDescription = header.SeriesDescription = patient.description
    header.Modality, header.Manufacturer, header.PatientPosition = volume.modality, "ssmsam", "HFS"
    header.BodyPartExamined, header.PositionReferenceIndicator = "ABDOMEN", ""
    header.SeriesNumber, header.AcquisitionNumber = 1, 1
    header.StudyInstanceUID = derived_uid(*identity, "study")
    header.SeriesInstanceUID = volume.series_uid or derived_uid(*identity, "series")
    header.FrameOfReferenceUID = volume.frame_of_reference_uid or derived_uid(*identity, "frame of reference")


def _describe_pixels(header: pydicom.Dataset, volume: Volume, index: int) -> None:
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    header.InstanceNumber = index + 1
    _, rows, columns = volume.shape
    between_slices, between_rows, between_columns = volume.spacing
    axes = volume.affine[:3, :3] / np.array([between_columns, between_rows, between_slices])
    header.Rows, header.Columns = rows, columns
    header.ImagePositionPatient = _decimals(volume.grid.to_lps(np.array([[0, 0, index]]))[0])
    header.ImageOrientationPatient = _decimals([*axes[:, 0], *axes[:, 1]])
    header.PixelSpacing = _decimals([between_rows, between_columns])
    header.SliceThickness, header.SpacingBetweenSlices = _decimals([between_slices, between_slices])
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(volume.array.dtype == np.int16)
    header.RescaleIntercept, header.RescaleSlope = "0", "1"
    if volume.modality == "CT":
        header.WindowCenter, header.WindowWidth = "40", "400"
    header.PixelData = volume.array[index].astype("<i2" if volume.array.dtype == np.int16 else "<u2").tobytes()


def _decimals(values: object) -> list[str]:
    """Numbers as DICOM decimal strings: at most 16 characters."""
    return [f"{value + 0.0:.10g}"[:16] for value in np.round(np.asarray(values, dtype=np.float64), 8)]


logger = logging.getLogger(__name__)

SLICE_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Modality",
]  # fmt: skip

ALWAYS_THERE = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
"""Attributes of the images that may be empty. Anonymised files often lack them altogether."""

FAMILIES = {
    "MANUAL": Code("123109", "Manual Processing", "DCM"),
    "SEMIAUTOMATIC": Code("123110", "Artificial Intelligence", "DCM"),
    "AUTOMATIC": Code("123110", "Artificial Intelligence", "DCM"),
}

SERIES_NUMBER = 1000
"""Behind the images in lists that are sorted by series number."""


class EmptySegmentation(ValueError):
    """A mask without a voxel of any label: there is nothing to store."""


@dataclass(frozen=True)
class AlgorithmNotes:
    """How a mask came about, as its DICOM SEG says it.

    ``kind`` is AUTOMATIC, SEMIAUTOMATIC (clicks, corrections) or MANUAL. ``creator`` is who accepted the mask, as a
    DICOM person name ("Family^Given"). ``parameters`` are settings worth keeping.
    """

    name: str
    version: str
    kind: str = "SEMIAUTOMATIC"
    creator: str = ""
    description: str = "Segmentation"
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.kind not in FAMILIES:
            raise ValueError(f"an algorithm is one of {', '.join(FAMILIES)}, got {self.kind!r}")
        if not self.name or not self.version or max(len(self.name), len(self.version), len(self.description)) > 64:
            raise ValueError("an algorithm needs a name and a version; these and the description have 64 characters")


def write_seg(
    mask: Volume,
    labels: Mapping[str, int],
    series: DicomSeries | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    algorithm: AlgorithmNotes,
) -> Path:
    """Write ``mask`` as a BINARY DICOM SEG of ``series`` (or of the folder that holds it). Returns ``path``.

    ``labels`` names the values of the mask; 0 is background. Every label that has a voxel becomes a segment, numbered
    1, 2, 3 ... in the order of the values, as the standard wants; the values themselves are kept beside. Labels
    without a voxel are left out, with a warning in the log. The file is read back and compared with the mask before
    it appears at ``path``: it is there whole and right, or not at all.

    Raises EmptySegmentation when no label has a voxel; ValueError when the mask is not on the grid of the series,
    holds values without a name, or names or headers cannot be written; SegMismatch when the comparison fails.
    """
    if not isinstance(series, DicomSeries):
        series = find_series(Path(series))
    _expect_grid(mask, series)
    mask = mask.with_array(_label_values(mask.array))
    segments = present_labels(mask, labels)
    headers, jitter_mm = _headers(series)
    seg = _segmentation(mask, segments, headers, algorithm)
    with whole_file(Path(path), ".dcm") as partial:
        seg.save_as(partial, write_like_original=False)
        check_seg(partial, mask, segments, jitter_mm=jitter_mm)
    return Path(path)


def present_labels(mask: Volume, labels: Mapping[str, int]) -> dict[str, int]:
    """The labels that have a voxel in ``mask`` (whole numbers), in the order of their values.

    Raises EmptySegmentation or ValueError as :func:`write_seg` does.
    """
    named = {name: value for name, value in labels.items() if value != 0}
    _expect_names(named)
    found = {value for plane in mask.array for value in np.flatnonzero(np.bincount(plane.ravel())).tolist()} - {0}
    if not found:
        raise EmptySegmentation(
            "The mask has no voxel of any label, so there is nothing to store as DICOM SEG. "
            "Segment something first; to say that nothing is there, mark the slices as empty instead."
        )
    if unnamed := sorted(found - set(named.values())):
        raise ValueError(f"the mask holds {unnamed[:8]} but the labels name only {named}. Name every value.")
    left_out = [name for name, value in named.items() if value not in found]
    if left_out:
        logger.warning("labels without a voxel are not in the DICOM SEG: %s", ", ".join(left_out))
    return dict(sorted(((name, value) for name, value in named.items() if value in found), key=lambda pair: pair[1]))


def _expect_names(labels: Mapping[str, int]) -> None:
    for name, value in labels.items():
        if not name or name != name.strip() or len(name) > 64 or "\\" in name or not name.isprintable():
            raise ValueError(
                f"the label name {name!r} cannot be written to DICOM. Use 1 to 64 characters without a backslash, "
                "a line break, or a space at either end."
            )
        if not 0 < value < 65536:
            raise ValueError(f"label {name!r} has the value {value}: values go from 1 to 65535")
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"several labels have the same value: {dict(labels)}. Give each its own.")


def _expect_grid(mask: Volume, series: DicomSeries) -> None:
    if not mask.grid.matches(series.grid):
        raise ValueError(
            f"the mask ({mask.shape}, spacing {np.round(mask.spacing, 3).tolist()} mm) is not on the grid of the "
            f"series ({series.grid.shape}, {np.round(series.grid.spacing, 3).tolist()} mm): shape, spacing, order of "
            "the axes and position have to be the same. Resample it to the series first."
        )


def _label_values(array: np.ndarray) -> np.ndarray:
    """The same whole numbers as uint16. Raises ValueError for anything else."""
    values = array.astype(np.uint16) if array.size and array.min() >= 0 and array.max() <= 65535 else None
    if values is None or not np.array_equal(values, array):
        raise ValueError("a mask holds whole numbers from 0 to 65535, one for each label")
    return values


def _headers(series: DicomSeries) -> tuple[list[pydicom.Dataset], float]:
    """What the SEG takes over from the images, in the order of the slices, and how far they lie from an even grid."""
    first = read_dataset(series.files[0], pixels=False)
    headers: list[pydicom.Dataset] = [first]
    headers += [read_dataset(path, tags=SLICE_TAGS, pixels=False) for path in series.files[1:]]
    for path, header in zip(series.files, headers, strict=True):
        missing = [name for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID") if not header.get(name)]
        if not header.get("FrameOfReferenceUID"):
            missing.append("FrameOfReferenceUID")
        if missing:
            raise ValueError(f"{path}: no {', '.join(missing)}, which a DICOM SEG has to refer to. Export it again.")
        header.pop("NumberOfFrames", None)
    _complete(first, series)
    origins = series.grid.to_lps(np.array([(0, 0, k) for k in range(len(headers))]))
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=np.float64)
    return headers, float(np.linalg.norm(positions - origins, axis=1).max())


def _complete(header: pydicom.Dataset, series: DicomSeries) -> None:
    """Fill what may be missing, drop what is not valid, and state the distance of the slices as it really is."""
    for name in ALWAYS_THERE:
        if name not in header:
            setattr(header, name, "")
    for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(header.get(name))
        except ValueError:
            setattr(header, name, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    between = f"{series.grid.spacing[0]:.10g}"
    header.SpacingBetweenSlices = between
    header.SliceThickness = header.get("SliceThickness") or between


def _segmentation(
    mask: Volume, segments: Mapping[str, int], headers: Sequence[pydicom.Dataset], algorithm: AlgorithmNotes
) -> Segmentation:
    number_of = np.zeros(int(mask.array.max()) + 1, dtype=np.uint8 if len(segments) < 256 else np.uint16)
    number_of[list(segments.values())] = np.arange(1, len(segments) + 1)
    seg = Segmentation(
        source_images=headers,
        pixel_array=number_of[mask.array],
        segmentation_type=SegmentationTypeValues.BINARY,  # label maps do not open in OHIF 3.9 and older
        segment_descriptions=_descriptions(segments, algorithm),
        series_instance_uid=generate_uid(prefix=None),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer="ssmsam",
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number="1",
        content_label="SEGMENTATION",
        content_description=algorithm.description,
        content_creator_name=algorithm.creator or None,
        series_description=algorithm.description,
        coding_schemes=[CodingSchemeIdentificationItem(PRIVATE_SCHEME, name="Label names of ssmsam's users")],
    )
    seg.SpecificCharacterSet = "ISO_IR 192"
    now = datetime.now()
    seg.SeriesDate, seg.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return seg


def _descriptions(segments: Mapping[str, int], algorithm: AlgorithmNotes) -> list[SegmentDescription]:
    concepts = [concept_of(name) for name in segments]
    colours = distinct_colours([concept.colour for concept in concepts])
    return [
        _description(number, name, value, concept, colour, algorithm)
        for number, ((name, value), concept, colour) in enumerate(
            zip(segments.items(), concepts, colours, strict=True), start=1
        )
    ]


def _description(
    number: int, name: str, value: int, concept: Concept, colour: RGB, algorithm: AlgorithmNotes
) -> SegmentDescription:
    item = SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=_coded(concept.category),
        segmented_property_type=_coded(concept.type),
        algorithm_type=algorithm.kind,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm.name,
            family=_coded(FAMILIES[algorithm.kind]),
            version=algorithm.version,
            source="ssmsam",
            parameters=dict(algorithm.parameters) or None,
        ),
        tracking_id=name,
        tracking_uid=generate_uid(prefix=None),
        anatomic_regions=[_coded(concept.region)] if concept.region else None,
    )
    if concept.side:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_coded(concept.side)]
    if concept.region_side:
        item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_coded(concept.region_side)]
    item.RecommendedDisplayCIELabValue = list(CIELabColor(*cielab(colour)).value)
    item.private_block(NUMBER_GROUP, NUMBER_OWNER, create=True).add_new(NUMBER_ELEMENT, "US", value)
    return item


def _coded(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)
