"""The sample dataset: which patients it holds, and how they become files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmsam.dicom.series_writer import DicomPatient, derived_uid, write_dicom_series
from ssmsam.progress import Progress, silent
from ssmsam.volume.volume import Volume, reoriented
from ssmsam.volume.writing import write_volume
from ssmsam_research.synthetic.anatomy import draw_anatomy, labels_of
from ssmsam_research.synthetic.rendering import Scan, render_ct, render_mr

FINER = (2, 2, 2)
"""Voxels drawn per voxel stored, along (slice, row, column)."""


@dataclass(frozen=True)
class SampleCase:
    """One synthetic patient and how the scan of it is stored."""

    name: str
    seed: int
    contrast: str
    """"CT", or "T2" or "T1" for MR."""
    orientation: str
    """Where column, row and slice index grow to, such as "LPS"."""
    shape: tuple[int, int, int] = (48, 160, 160)
    """(slices, rows, columns) before the orientation is applied."""
    spacing_mm: tuple[float, float, float] = (5.0, 2.1, 2.1)
    tilt_degrees: float = 0.0
    """How far the patient lies turned about the left-right axis."""
    patient: str = ""
    """A DICOM series is written under this name when given."""


CASES = (
    SampleCase("ct_01", 11, "CT", "LPS", shape=(44, 160, 160), patient="Sample^One"),
    SampleCase("ct_02", 12, "CT", "RAS"),
    SampleCase("ct_03", 13, "CT", "LAS", shape=(56, 160, 160), spacing_mm=(4.0, 2.2, 2.2)),
    SampleCase("mr_04", 14, "T2", "LPI", shape=(40, 160, 160), spacing_mm=(6.0, 2.1, 2.1)),
    SampleCase("mr_05", 15, "T1", "RAS", tilt_degrees=7.0),
)


def make_case(case: SampleCase) -> tuple[Volume, Volume]:
    """The image (int16: HU for CT) and its labels (uint8) of one case, on one grid, in the case's orientation."""
    fine_mm = tuple(mm / n for mm, n in zip(case.spacing_mm, FINER, strict=True))
    fine_shape = tuple(n * by for n, by in zip(case.shape, FINER, strict=True))
    tissue = draw_anatomy(case.seed, shape=fine_shape, spacing_mm=fine_mm)  # type: ignore[arg-type]
    scan = Scan(fine_mm, FINER)  # type: ignore[arg-type]
    if case.contrast == "CT":
        array = render_ct(tissue, seed=case.seed, scan=scan)
    else:
        array = render_mr(tissue, seed=case.seed, scan=scan, contrast=case.contrast)
    affine, modality = _affine(case), "CT" if case.contrast == "CT" else "MR"
    image = Volume(array, affine, modality, derived_uid("ssmsam", case.name), derived_uid("ssmsam frame", case.name))
    labels = image.with_array(majority(labels_of(tissue), FINER))
    return reoriented(image, case.orientation), reoriented(labels, case.orientation)


def write_samples(root: Path, *, cases: tuple[SampleCase, ...] = CASES, progress: Progress = silent) -> None:
    """Write ``root``/abdomen (images), abdomen_labels (truth, same names) and abdomen_dicom/NAME (series)."""
    for n, case in enumerate(cases):
        progress("drawing samples", n, len(cases))
        image, labels = make_case(case)
        write_volume(image, root / "abdomen" / f"{case.name}.nii.gz")
        write_volume(labels, root / "abdomen_labels" / f"{case.name}.nii.gz")
        if case.patient:
            patient = DicomPatient(case.patient, f"SAMPLE-{case.seed}", "Synthetic abdomen, not a real patient")
            write_dicom_series(image, root / "abdomen_dicom" / case.name, patient=patient)
    progress("drawing samples", len(cases), len(cases))


def draw_samples(root: Path, *, only: Sequence[str] = (), progress: Progress = silent) -> None:
    """:func:`write_samples` of the cases that are named, all by default. Raises ValueError for another name."""
    known = [case.name for case in CASES]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"there is no sample volume {', '.join(unknown)}; there are {', '.join(known)}")
    write_samples(root, cases=tuple(case for case in CASES if not only or case.name in only), progress=progress)


def majority(labels: np.ndarray, merge: tuple[int, int, int]) -> np.ndarray:
    """The commonest label of each block of ``merge`` voxels; the lowest of equally common ones."""
    (a, n), (b, m), (c, k) = ((size // by, by) for size, by in zip(labels.shape, merge, strict=True))
    blocks = labels.reshape(a, n, b, m, c, k)
    counts = np.stack([(blocks == value).sum(axis=(1, 3, 5)) for value in range(int(labels.max()) + 1)])
    return counts.argmax(axis=0).astype(labels.dtype)


def _affine(case: SampleCase) -> np.ndarray:
    """Voxel to LPS millimetres of the upright grid, turned by the tilt about the grid's centre."""
    columns_first = np.array(case.spacing_mm[::-1])
    angle = np.deg2rad(case.tilt_degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * columns_first
    centre = np.array([4.0, -160.0 + case.seed, -480.0 - case.seed])
    affine[:3, 3] = np.round(centre - affine[:3, :3] @ ((np.array(case.shape[::-1]) - 1) / 2), 4)
    return affine
