"""A volume to the files of a DICOM series, for sample data, demonstrations and tests."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import UID, CTImageStorage, MRImageStorage

from ssmsam.dicom.file import new_file
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
        _slice(volume, index, patient).save_as(path, write_like_original=False)


def _slice(volume: Volume, index: int, patient: DicomPatient) -> FileDataset:
    uid = derived_uid(patient.patient_id, volume.digest, "instance", index)
    header = new_file(STORAGE[volume.modality], uid)
    header.file_meta.ImplementationClassUID = derived_uid("ssmsam")
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
