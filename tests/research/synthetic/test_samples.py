"""The sample dataset as committed, and as it is made."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ssmsam.reading import read_volume
from ssmsam.volume.geometry import axis_codes
from ssmsam_research.synthetic.anatomy import LABELS
from ssmsam_research.synthetic.samples import CASES, SampleCase, majority, write_samples

SAMPLES = Path(__file__).parents[3] / "sample-datasets"
SMALL = SampleCase("small", 21, "CT", "RAS", shape=(6, 40, 40), spacing_mm=(40.0, 8.4, 8.4))
SMALL_MR = SampleCase("small_mr", 22, "T1", "LPI", shape=(6, 40, 40), spacing_mm=(40.0, 8.4, 8.4), tilt_degrees=5)
SMALL_DICOM = SampleCase("small_dicom", 23, "CT", "LPS", shape=(6, 40, 40), spacing_mm=(40.0, 8.4, 8.4), patient="S^S")

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_two_runs_make_the_same_bytes(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_samples(tmp_path / run, cases=(SMALL, SMALL_MR, SMALL_DICOM))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 3 + 3 + 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_the_committed_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    """One whole case, compared after decompression: another zlib packs the same voxels differently."""
    case = next(case for case in CASES if case.name == "mr_04")
    write_samples(tmp_path, cases=(case,))
    for folder in ("abdomen", "abdomen_labels"):
        made, committed = (
            gzip.decompress((root / folder / "mr_04.nii.gz").read_bytes()) for root in (tmp_path, SAMPLES)
        )
        assert made == committed, folder


@cases
def test_images_and_labels_share_a_grid_in_the_declared_orientation(case: SampleCase) -> None:
    image = read_volume(SAMPLES / "abdomen" / f"{case.name}.nii.gz")
    labels = read_volume(SAMPLES / "abdomen_labels" / f"{case.name}.nii.gz")
    assert image.grid.matches(labels.grid)
    assert axis_codes(image.grid) == case.orientation
    assert image.spacing == pytest.approx(case.spacing_mm, abs=1e-3)
    assert image.array.dtype == np.int16
    assert labels.array.dtype == np.uint8


@cases
def test_the_liver_is_on_the_patients_right_whatever_the_orientation(case: SampleCase) -> None:
    labels = read_volume(SAMPLES / "abdomen_labels" / f"{case.name}.nii.gz")
    assert sorted(np.unique(labels.array)) == [0, *LABELS.values()]
    left = {name: labels.grid.to_lps(np.argwhere(labels.array == n)[:, ::-1]).mean(0)[0] for name, n in LABELS.items()}
    assert left["liver"] < left["aorta"] < left["spleen"]
    assert left["right kidney"] < left["aorta"] < left["left kidney"]


def test_the_dicom_series_is_the_same_image() -> None:
    for case in CASES:
        if case.patient:
            series = read_volume(SAMPLES / "abdomen_dicom" / case.name)
            image = read_volume(SAMPLES / "abdomen" / f"{case.name}.nii.gz")
            np.testing.assert_array_equal(series.array, image.array)
            assert series.grid.matches(image.grid)
            assert series.modality == "CT"


def test_the_cases_differ_in_orientation() -> None:
    assert {"LPS", "RAS", "LAS"} <= {case.orientation for case in CASES}


def test_the_majority_of_a_block_decides() -> None:
    labels = np.zeros((2, 2, 4), np.uint8)
    labels[:, :, :2].flat[:5] = 3
    labels[:, :, 2:].flat[:3] = 2
    np.testing.assert_array_equal(majority(labels, (2, 2, 2)), [[[3, 0]]])
