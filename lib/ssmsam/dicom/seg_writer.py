"""A mask to a DICOM SEG that belongs to the series it was drawn on."""

from __future__ import annotations

import copy
import logging
import os
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
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from ssmsam.dicom.file import OWN, SHARED, frame_headers, read_dataset, reference
from ssmsam.dicom.seg_check import (
    NOTHING_COVERED,
    NUMBER_ELEMENT,
    NUMBER_GROUP,
    NUMBER_OWNER,
    Covered,
    check_seg,
    label_mask,
)
from ssmsam.dicom.series import DicomSeries, find_series
from ssmsam.dicom.terminology import PRIVATE_SCHEME, RGB, Code, Concept, cielab, concept_of, distinct_colours
from ssmsam.files import whole_file
from ssmsam.volume.volume import Volume

logger = logging.getLogger(__name__)

SLICE_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Modality", "NumberOfFrames", SHARED, OWN,
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
    covered: Covered = NOTHING_COVERED,
) -> Path:
    """Write ``mask`` as a BINARY DICOM SEG of ``series`` (or of the folder that holds it). Returns ``path``.

    ``labels`` names the values of the mask; 0 is background. Every label that has a voxel becomes a segment, numbered
    1, 2, 3 ... in the order of the values, as the standard wants; the values themselves are kept beside. Labels
    without a voxel are left out, with a warning in the log. Segments overlap where labels are ``covered`` by others,
    which a label map cannot show. The file is read back and compared with the mask before it appears at ``path``: it
    is there whole and right, or not at all.

    Raises EmptySegmentation when no label has a voxel; ValueError when the mask is not on the grid of the series,
    holds values without a name, or names or headers cannot be written; SegMismatch when the comparison fails.
    """
    mask, segments, headers, jitter_mm = prepared(mask, labels, series, covered)
    seg = _segmentation(mask, segments, headers, algorithm, covered)
    with whole_file(Path(path), ".dcm") as partial:
        seg.save_as(partial, write_like_original=False)
        check_seg(partial, mask, segments, jitter_mm=jitter_mm, covered=covered)
    return Path(path)


def prepared(
    mask: Volume,
    labels: Mapping[str, int],
    series: DicomSeries | str | os.PathLike[str],
    covered: Covered = NOTHING_COVERED,
) -> tuple[Volume, dict[str, int], list[pydicom.Dataset], float]:
    """What a file of ``mask`` is made of: the mask in whole numbers, the labels that have a voxel, the headers of its
    images, and how far these lie from even spacing, in mm. Raises as :func:`write_seg`."""
    if not isinstance(series, DicomSeries):
        series = find_series(Path(series))
    _expect_grid(mask, series)
    mask = mask.with_array(_label_values(mask.array))
    return mask, _present_labels(mask, labels, covered), *_image_headers(series)


def _present_labels(mask: Volume, labels: Mapping[str, int], covered: Covered) -> dict[str, int]:
    """The labels that have a voxel in ``mask`` (whole numbers), in the order of their values.

    Raises EmptySegmentation or ValueError as :func:`write_seg` does.
    """
    named = {name: value for name, value in labels.items() if value != 0}
    _expect_names(named)
    found = {value for plane in mask.array for value in np.flatnonzero(np.bincount(plane.ravel())).tolist()} - {0}
    found |= {named[name] for name, area in covered.items() if name in named and area.any()}
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
    """Raises ValueError where a mask is not on the grid of a series."""
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


def _image_headers(series: DicomSeries) -> tuple[list[pydicom.Dataset], float]:
    """What the SEG takes over from the images, in the order of the slices, and how far they lie from an even grid."""
    read: dict[Path, list[pydicom.Dataset]] = {}
    for path in series.files:
        if path not in read:
            header = read_dataset(path, tags=SLICE_TAGS if read else None, pixels=False)
            _expect_identified(path, header)
            read[path] = frame_headers(header, path)
            read[path][0].pop("NumberOfFrames", None)
    headers = [read[path][frame] for path, frame in zip(series.files, series.frames, strict=True)]
    _complete(headers[0], series)
    origins = series.grid.to_lps(np.array([(0, 0, k) for k in range(len(headers))]))
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=np.float64)
    return headers, float(np.linalg.norm(positions - origins, axis=1).max())


def _expect_identified(path: Path, header: pydicom.Dataset) -> None:
    names = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    if missing := [name for name in names if not header.get(name)]:
        raise ValueError(f"{path}: no {', '.join(missing)}, which a DICOM SEG has to refer to. Export it again.")


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
    mask: Volume,
    segments: Mapping[str, int],
    headers: Sequence[pydicom.Dataset],
    algorithm: AlgorithmNotes,
    covered: Covered,
) -> Segmentation:
    if covered:
        pixels = np.stack([label_mask(mask, name, value, covered) for name, value in segments.items()], axis=-1)
    else:
        number_of = np.zeros(int(mask.array.max()) + 1, dtype=np.uint8 if len(segments) < 256 else np.uint16)
        number_of[list(segments.values())] = np.arange(1, len(segments) + 1)
        pixels = number_of[mask.array]
    seg = Segmentation(
        source_images=_told_apart(headers),
        pixel_array=pixels,
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
    _refer(seg, headers)
    seg.SpecificCharacterSet = "ISO_IR 192"
    now = datetime.now()
    seg.SeriesDate, seg.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return seg


def _told_apart(headers: Sequence[pydicom.Dataset]) -> list[pydicom.Dataset]:
    """The images, each under a UID of its own: highdicom takes no frames of several files, or in another order."""
    if not any("ReferencedFrameNumber" in header for header in headers):
        return list(headers)
    named = [copy.copy(header) for header in headers]
    for number, header in enumerate(named):
        del header.SOPInstanceUID  # the copies share it
        header.SOPInstanceUID = str(number)
    return named


def _refer(seg: Segmentation, headers: Sequence[pydicom.Dataset]) -> None:
    """Name the images as they are called, once each, and the frames of multi-frame images by their numbers."""
    if not any("ReferencedFrameNumber" in header for header in headers):
        return
    for frame in seg.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence") or ():
            for source in derivation.SourceImageSequence:
                header = headers[int(source.ReferencedSOPInstanceUID)]
                source.ReferencedSOPInstanceUID = header.SOPInstanceUID
                if "ReferencedFrameNumber" in header:
                    source.ReferencedFrameNumber = header.ReferencedFrameNumber
    files = list({header.SOPInstanceUID: header for header in headers}.values())
    seg.SourceImageSequence = [reference(header) for header in files]
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [reference(header) for header in files]


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
