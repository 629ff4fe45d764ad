"""A mask to a DICOM RT Structure Set of the series it was drawn on, and back.

Contours run between the centres of pixels inside and outside, so that filling them gives back the very mask. (The
library rt-utils draws them through the centres, takes the spacing of rows for that of columns, and wants OpenCV.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RTStructureSetStorage, generate_uid
from scipy.spatial import cKDTree
from skimage.draw import polygon2mask
from skimage.measure import find_contours, points_in_poly

from ssmsam.dicom.file import new_file, read_dataset, reference
from ssmsam.dicom.seg_check import NOTHING_COVERED, Covered, SegMismatch, label_mask
from ssmsam.dicom.seg_writer import AlgorithmNotes, prepared
from ssmsam.dicom.series import DicomSeries
from ssmsam.dicom.terminology import concept_of, distinct_colours
from ssmsam.files import whole_file
from ssmsam.volume.errors import UnreadableVolume, one_error
from ssmsam.volume.volume import Grid, Volume

STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"
"""The class by which an RT Structure Set refers to a study."""
TAKEN_OVER = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "StudyInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
ENCLOSING = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
"""Kinds of contours that have an inside."""
ON_SLICE = 0.1
"""How far from a slice, as a share of the distance of slices, a contour may lie and still belong to it. *Guess*."""


def write_rtstruct(
    mask: Volume,
    labels: Mapping[str, int],
    series: DicomSeries | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    algorithm: AlgorithmNotes,
    covered: Covered = NOTHING_COVERED,
) -> Path:
    """Write ``mask`` as an RT Structure Set of ``series`` (or of the folder that holds it). Returns ``path``.

    Every label that has a voxel becomes a region of interest, with one closed contour for each of its pieces on each
    slice; a hole is joined to its piece by a cut without width. What labels hide of one another is ``covered``, as in
    :func:`~ssmsam.dicom.seg_writer.write_seg`. The file is read back and compared voxel by voxel before it appears at
    ``path``.

    Raises EmptySegmentation and ValueError as :func:`~ssmsam.dicom.seg_writer.write_seg` does, and SegMismatch.
    """
    mask, rois, headers, _ = prepared(mask, labels, series, covered)
    masks = {name: label_mask(mask, name, value, covered) for name, value in rois.items()}
    data = _structure_set(masks, mask.grid, headers, algorithm)
    with whole_file(Path(path), ".dcm") as partial:
        data.save_as(partial, write_like_original=False)
        read = read_rtstruct(partial, mask.grid)
        for name, area in masks.items():
            if not np.array_equal(read[name], area):
                raise SegMismatch(f"{Path(path).name}: the contours of {name} do not give back its voxels.")
    return Path(path)


def read_rtstruct(path: str | os.PathLike[str], grid: Grid) -> dict[str, np.ndarray]:
    """Name -> mask (slices, rows, columns) bool of every region of an RT Structure Set, on the grid of its images.

    A pixel is inside where an odd number of a region's contours on its slice hold its centre; points and open lines
    enclose nothing. Raises UnreadableVolume for what is no structure set, and for contours that lie on no slice.
    """
    with one_error(str(path)):
        data = read_dataset(Path(path))
        if str(data.get("SOPClassUID") or "") != RTStructureSetStorage:
            raise UnreadableVolume(f"{path}: a {data.get('Modality') or 'DICOM'} object, not an RT Structure Set.")
        names = {int(roi.ROINumber): str(roi.ROIName) for roi in data.get("StructureSetROISequence") or ()}
        found = {name: np.zeros(grid.shape, dtype=bool) for name in names.values()}
        for roi in data.get("ROIContourSequence") or ():
            name = names.get(int(roi.ReferencedROINumber))
            if name is None:
                raise UnreadableVolume(f"region {roi.ReferencedROINumber} is not described. Export it again.")
            for contour in roi.get("ContourSequence") or ():
                if str(contour.get("ContourGeometricType") or "") in ENCLOSING and contour.get("ContourData"):
                    _fill(found[name], contour.ContourData, grid, name)
    return found


def _fill(mask: np.ndarray, data: Sequence[float], grid: Grid, name: str) -> None:
    ijk = grid.to_ijk(np.reshape(np.asarray(data, dtype=np.float64), (-1, 3)))
    k = round(float(ijk[:, 2].mean()))
    if not 0 <= k < grid.shape[0] or np.abs(ijk[:, 2] - k).max() > ON_SLICE:
        raise UnreadableVolume(f"a contour of {name} lies on none of the slices")
    mask[k] ^= polygon2mask(mask[k].shape, ijk[:, 1::-1])


def contours_of(mask: np.ndarray) -> list[np.ndarray]:
    """The closed contours (N, 2) of a slice's mask (height, width), as (x, y) in its pixels: one for each piece, its
    holes joined to it."""
    drawn = [line[:-1, ::-1] - 1 for line in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)]
    areas = [_area(line) for line in drawn]
    outer = [line for line, area in zip(drawn, areas, strict=True) if area > 0]
    for hole in (line for line, area in zip(drawn, areas, strict=True) if area < 0):
        around = [n for n, line in enumerate(outer) if points_in_poly(hole[:1], line)[0]]
        nearest = min(around, key=lambda n: abs(_area(outer[n])))
        outer[nearest] = _joined(outer[nearest], hole)
    return outer


def _area(line: np.ndarray) -> float:
    """Twice the signed area of a closed line: positive round what is inside a mask, negative round a hole."""
    x, y = line.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def _joined(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A line that goes round a piece, at its nearest place over to a hole, round that, and back."""
    distance, nearest = cKDTree(outer).query(hole)
    there = int(distance.argmin())
    here = int(nearest[there])
    return np.concatenate([outer[: here + 1], np.roll(hole, -there, axis=0), hole[there : there + 1], outer[here:]])


def _structure_set(
    masks: Mapping[str, np.ndarray], grid: Grid, headers: Sequence[Dataset], algorithm: AlgorithmNotes
) -> FileDataset:
    data = new_file(RTStructureSetStorage, generate_uid(prefix=None))
    for name in TAKEN_OVER:
        setattr(data, name, headers[0].get(name) or "")
    now = datetime.now()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", generate_uid(prefix=None)
    data.SeriesNumber, data.InstanceNumber, data.OperatorsName = 1000, 1, ""
    data.Manufacturer, data.ManufacturerModelName = "ssmsam", algorithm.name
    data.SoftwareVersions, data.SeriesDescription = algorithm.version, algorithm.description
    data.StructureSetLabel = "SSMSAM"
    data.StructureSetDate, data.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.SeriesDate, data.SeriesTime = data.StructureSetDate, data.StructureSetTime
    data.ApprovalStatus, data.PositionReferenceIndicator = "UNAPPROVED", ""
    data.ReferencedFrameOfReferenceSequence = [_frame_of_reference(headers)]
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
    colours = distinct_colours([concept_of(name).colour for name in masks])
    for number, ((name, mask), colour) in enumerate(zip(masks.items(), colours, strict=True), start=1):
        roi, contours, observation = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, algorithm.kind
        roi.ReferencedFrameOfReferenceUID = data.FrameOfReferenceUID
        contours.ROIDisplayColor, contours.ReferencedROINumber = list(colour), number
        contours.ContourSequence = list(_contours(mask, grid, headers))
        observation.ObservationNumber, observation.ReferencedROINumber = number, number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", algorithm.creator
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(contours)
        data.RTROIObservationsSequence.append(observation)
    return data


def _frame_of_reference(headers: Sequence[Dataset]) -> Dataset:
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [reference(header, frame=True) for header in headers]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_MANAGEMENT, headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _contours(mask: np.ndarray, grid: Grid, headers: Sequence[pydicom.Dataset]) -> Iterator[Dataset]:
    for k in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        for number, xy in enumerate(contours_of(mask[k]), start=1):
            contour = Dataset()
            contour.ContourNumber = number
            contour.ContourImageSequence = [reference(headers[k], frame=True)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(xy)
            lps = grid.to_lps(np.column_stack([xy, np.full(len(xy), k)]))
            contour.ContourData = [f"{one:.4f}" for one in lps.ravel()]
            yield contour
