"""The sample volumes as DICOM series, for a DICOM store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ssmsam.dicom.seg_writer import DicomPatient, derived_uid, write_dicom_series
from ssmsam.reading import read_volume
from ssmsam.volume.volume import reoriented
from ssmsam_research.training.samples import CASES, SampleCase


def write_sample_studies(samples: Path, out: Path, *, cases: tuple[SampleCase, ...] = CASES) -> list[Path]:
    """Write one folder for each case of the sample dataset in ``samples``; returns the folders, in order.

    Cases that the dataset holds as DICOM already are taken from there as they are. The others are stored the way
    scanners do it (LPS), whatever the order of their axes in the dataset.
    """
    return [_series(samples, out, case) for case in cases]


def _series(samples: Path, out: Path, case: SampleCase) -> Path:
    ready = samples / "abdomen_dicom" / case.name
    if ready.is_dir():
        return ready
    image = read_volume(samples / "abdomen" / f"{case.name}.nii.gz")
    volume = replace(
        reoriented(image, "LPS"),
        modality="CT" if case.contrast == "CT" else "MR",
        series_uid=derived_uid("ssmsam", case.name),
        frame_of_reference_uid=derived_uid("ssmsam frame", case.name),
    )
    patient = DicomPatient(
        f"Sample^{case.name.upper()}", f"SAMPLE-{case.seed}", f"Synthetic abdomen {case.contrast}, not a real patient"
    )
    write_dicom_series(volume, out / case.name, patient=patient)
    return out / case.name
