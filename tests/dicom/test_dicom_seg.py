"""Masks to DICOM SEG and back, with readers that did not write them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssmsam.dicom import seg_writer as dicom_seg
from ssmsam.dicom.seg_check import SegMismatch, check_seg
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.dicom.seg_writer import AlgorithmNotes, EmptySegmentation, write_seg
from ssmsam.dicom.series import find_series
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume, reoriented

PATIENT = DicomPatient("Test^Tessa", "T-1", "a few slices")
NOTES = AlgorithmNotes("sam_3d", "0.1", creator="Müller^Jörg", parameters={"propagate": "yes"})
LABELS = {"liver": 1, "Nebenniere größe 肝": 3, "left kidney": 4, "right kidney": 7, "unseen": 9}
SAMPLES = Path(__file__).parents[2] / "sample-datasets"


def mask_on(volume: Volume) -> Volume:
    """Labels 1, 3, 4 and 7 in no symmetry at all; some slices without some labels."""
    array = np.zeros(volume.shape, dtype=np.uint8)
    rng = np.random.default_rng(3)
    array[rng.random(volume.shape) < 0.2] = 1
    array[1:3, 2:5, 1:4] = 3
    array[-1, :3, -2:] = 4
    array[0, -1, 0] = 7
    return volume.with_array(array)


def series_of(volume: Volume, folder: Path, *, codes: str = "LPS", shuffled: bool = False) -> Volume:
    """Write the volume, stored towards ``codes``, as a series; returns it as it is read."""
    stored = reoriented(volume, codes)
    if np.linalg.det(stored.affine[:3, :3]) < 0:
        stored = reoriented(stored, codes[:2] + {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}[codes[2]])
    write_dicom_series(stored, folder, patient=PATIENT)
    if shuffled:
        order = np.random.default_rng(5).permutation(stored.shape[0])
        for number, path in zip(order, sorted(folder.iterdir()), strict=True):
            header = pydicom.dcmread(path)
            header.InstanceNumber = int(number) + 1
            header.save_as(folder / f"x{number:03d}.dcm")
            path.unlink()
    return read_volume(folder)


@pytest.fixture
def series(tmp_path: Path, ct: Volume) -> Path:
    series_of(ct, tmp_path / "series")
    return tmp_path / "series"


@pytest.fixture
def mask(series: Path) -> Volume:
    return mask_on(read_volume(series))


@pytest.fixture
def seg(tmp_path: Path, series: Path, mask: Volume) -> Path:
    return write_seg(mask, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)


def by_dcmqi(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Name -> centres (N, 3) in LPS mm of every voxel of the segment, by dcmqi's own converter."""
    import SimpleITK as sitk

    program = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("dcmqi's segimage2itkimage is not installed: pip install dcmqi")
    folder.mkdir()
    command = [program, "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nrrd", "-p", "s"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    names = {
        item["labelID"]: item["SegmentLabel"]
        for group in json.loads((folder / "s-meta.json").read_text())["segmentAttributes"]
        for item in group
    }
    places = {}
    for number, name in names.items():
        image = sitk.ReadImage(str(folder / f"s-{number}.nrrd"))
        voxels = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].tolist()
        places[name] = np.array([image.TransformIndexToPhysicalPoint(voxel) for voxel in voxels])
    return places


def centres(mask: Volume, value: int) -> np.ndarray:
    return mask.grid.to_lps(np.argwhere(mask.array == value)[:, ::-1])


def assert_same_places(found: np.ndarray, expected: np.ndarray) -> None:
    """The same set of points, in any order."""
    assert found.shape == expected.shape
    key = lambda points: np.lexsort(np.round(points, 1).T)  # noqa: E731
    np.testing.assert_allclose(found[key(found)], expected[key(expected)], atol=0.02)


@pytest.mark.parametrize("codes", ["LPS", "LIP", "PSL", "RAS", "PIR"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_any_orientation_survives_the_round_trip(tmp_path: Path, ct: Volume, codes: str, shuffled: bool) -> None:
    mask = mask_on(series_of(ct, tmp_path / "series", codes=codes, shuffled=shuffled))
    path = write_seg(mask, LABELS, tmp_path / "series", tmp_path / "seg.dcm", algorithm=NOTES)
    read = read_seg(path, mask.grid)
    np.testing.assert_array_equal(read.volume.array, mask.array)
    assert read.labels == {name: value for name, value in LABELS.items() if name != "unseen"}
    assert read.overlap == 0
    assert read.volume.series_uid == mask.series_uid


@pytest.mark.parametrize("codes", ["LPS", "PSL", "RAS"])
def test_dcmqi_sees_the_same_names_voxels_and_places(tmp_path: Path, ct: Volume, codes: str) -> None:
    mask = mask_on(series_of(ct, tmp_path / "series", codes=codes, shuffled=True))
    path = write_seg(mask, LABELS, tmp_path / "series", tmp_path / "seg.dcm", algorithm=NOTES)
    found = by_dcmqi(path, tmp_path / "dcmqi")
    assert set(found) == set(LABELS) - {"unseen"}
    for name, places in found.items():
        assert_same_places(places, centres(mask, LABELS[name]))


def test_the_mask_lies_at_the_same_place_on_every_grid_of_the_image(seg: Path, mask: Volume) -> None:
    for codes in ("RAS", "PSL", "IRA"):
        turned = reoriented(mask, codes)
        np.testing.assert_array_equal(read_seg(seg, turned.grid).volume.array, turned.array)


def test_the_sample_series(tmp_path: Path) -> None:
    labels = {"liver": 1, "spleen": 2, "right kidney": 3, "left kidney": 4, "aorta": 5, "liver lesion": 6}
    truth = read_volume(SAMPLES / "abdomen_labels" / "ct_01.nii.gz")
    series = SAMPLES / "abdomen_dicom" / "ct_01"
    path = write_seg(truth, labels, find_series(series), tmp_path / "seg.dcm", algorithm=NOTES)
    read = read_seg(path, read_volume(series).grid)
    np.testing.assert_array_equal(read.volume.array, truth.array)
    assert read.labels == labels
    for name, places in by_dcmqi(path, tmp_path / "dcmqi").items():
        expected = centres(truth, labels[name])
        assert len(places) == len(expected)
        np.testing.assert_allclose(places.mean(axis=0), expected.mean(axis=0), atol=0.01)


@pytest.mark.parametrize("count", [2, 3, 40, pytest.param(600, marks=pytest.mark.slow)])
def test_few_slices_and_many(tmp_path: Path, count: int) -> None:
    array = np.arange(count * 5 * 3, dtype=np.int16).reshape(count, 5, 3)  # 15 pixels: frames start inside bytes
    volume = series_of(Volume(array, np.diag([1.0, 2.0, 3.0, 1.0]), "CT"), tmp_path / "series")
    mask = volume.with_array((np.random.default_rng(1).random(volume.shape) < 0.5).astype(np.float32))
    path = write_seg(mask, {"lesion": 1}, tmp_path / "series", tmp_path / "seg.dcm", algorithm=NOTES)
    np.testing.assert_array_equal(read_seg(path, mask.grid).volume.array, mask.array)


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=6, unique=True), st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_numbers_and_voxels_survive(series: Path, values: list[int], data: st.DataObject) -> None:
    characters = st.characters(exclude_categories=("C", "Z"), exclude_characters="\\")
    names = data.draw(st.lists(st.text(characters, min_size=1, max_size=20), min_size=len(values), unique=True))
    labels = dict(zip(names, values, strict=False))
    volume = read_volume(series)
    rng = np.random.default_rng(len(names))
    array = rng.choice([0, *labels.values()], size=volume.shape).astype(np.uint16)
    path = write_seg(volume.with_array(array), labels, series, series.parent / "seg.dcm", algorithm=NOTES)
    read = read_seg(path, volume.grid)
    np.testing.assert_array_equal(read.volume.array, array)
    assert read.labels == {name: value for name, value in labels.items() if value in array}


def test_what_the_file_says_of_itself_and_its_source(seg: Path, series: Path) -> None:
    file = pydicom.dcmread(seg)
    images = [pydicom.dcmread(path) for path in series.iterdir()]
    assert (file.Modality, file.SegmentationType) == ("SEG", "BINARY")
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert file[name].value == images[0][name].value
    assert file.SeriesInstanceUID != images[0].SeriesInstanceUID
    (referenced,) = file.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == images[0].SeriesInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert instances == {image.SOPInstanceUID for image in images}
    place = {str(image.SOPInstanceUID): image.ImagePositionPatient for image in images}
    for frame in file.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert frame.PlanePositionSequence[0].ImagePositionPatient == place[source]


def test_segments_are_named_coded_coloured_and_signed(seg: Path) -> None:
    segments = pydicom.dcmread(seg).SegmentSequence
    assert [int(item.SegmentNumber) for item in segments] == [1, 2, 3, 4]
    assert [item.SegmentLabel for item in segments] == list(LABELS)[:4]
    kinds = [item.SegmentedPropertyTypeCodeSequence[0] for item in segments]
    assert [kinds[n].CodeValue for n in (0, 2, 3)] == ["10200004", "64033007", "64033007"]
    assert {kinds[n].CodingSchemeDesignator for n in (0, 2, 3)} == {"SCT"}
    assert (kinds[1].CodingSchemeDesignator, kinds[1].CodeMeaning) == ("99SSMSAM", "Nebenniere größe 肝")
    sides = [kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for kind in kinds[2:]]
    assert sides == ["Left", "Right"]
    assert len({tuple(item.RecommendedDisplayCIELabValue) for item in segments}) == 4
    for item in segments:
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("sam_3d", "0.1")
        assert item.SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_a_label_without_a_voxel_is_reported(
    tmp_path: Path, series: Path, mask: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    write_seg(mask, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)
    assert "unseen" in caplog.text and "liver" not in caplog.text


def test_a_leading_background_is_no_label(tmp_path: Path, series: Path, mask: Volume) -> None:
    path = write_seg(mask, {"background": 0, **LABELS}, series, tmp_path / "seg.dcm", algorithm=NOTES)
    assert "background" not in read_seg(path, mask.grid).labels


def test_an_empty_mask_is_refused_with_advice(tmp_path: Path, series: Path, mask: Volume) -> None:
    empty = mask.with_array(np.zeros_like(mask.array))
    with pytest.raises(EmptySegmentation, match="Segment something first"):
        write_seg(empty, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ({"liver": 1}, "Name every value"),
        ({**LABELS, "again": 1}, "same value"),
        ({**LABELS, "a\\b": 20}, "backslash"),
        ({**LABELS, "x" * 65: 20}, "64 characters"),
        ({**LABELS, " edge": 20}, "either end"),
        ({**LABELS, "too high": 65536}, "65535"),
    ],
)
def test_labels_that_cannot_be_written(
    tmp_path: Path, series: Path, mask: Volume, labels: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_seg(mask, labels, series, tmp_path / "seg.dcm", algorithm=NOTES)


def test_a_mask_on_another_grid_is_refused(tmp_path: Path, series: Path, mask: Volume) -> None:
    moved = mask.affine.copy()
    moved[0, 3] += 0.5
    for other in (Volume(mask.array, moved), reoriented(mask, "RAS"), Volume(mask.array[:-1], mask.affine)):
        with pytest.raises(ValueError, match="not on the grid"):
            write_seg(other, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)


@pytest.mark.parametrize("values", [1.5, -1.0, 70000.0, np.nan])
def test_what_is_no_label_number_is_refused(tmp_path: Path, series: Path, mask: Volume, values: float) -> None:
    array = mask.array.astype(np.float32)
    array[0, 0, 0] = values
    with pytest.raises(ValueError, match="whole numbers"):
        write_seg(mask.with_array(array), LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)


def test_anonymised_and_odd_headers_do_not_matter(tmp_path: Path, series: Path, mask: Volume) -> None:
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        for name in ("PatientID", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyTime", "SliceThickness"):
            del header[name]
        header.PatientSex, header.StudyDate, header.NumberOfFrames = "W", "00000000", 1
        header.SpacingBetweenSlices = "99"
        header.save_as(path)
    path = write_seg(mask, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)
    np.testing.assert_array_equal(read_seg(path, mask.grid).volume.array, mask.array)
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(mask.spacing[0])


@pytest.mark.parametrize(
    ("charset", "name"), [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 144", "Люкceмбypг"), ("ISO_IR 192", "山田^太郎")]
)
def test_the_patients_name_survives_in_any_character_set(
    tmp_path: Path, series: Path, mask: Volume, charset: str, name: str
) -> None:
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet, header.PatientName = charset, name
        header.save_as(path)
    path = write_seg(mask, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)
    assert str(pydicom.dcmread(path).PatientName) == name


def test_images_that_cannot_be_referred_to_are_refused(tmp_path: Path, series: Path, mask: Volume) -> None:
    first = min(series.iterdir())
    header = pydicom.dcmread(first)
    header.SOPInstanceUID = ""
    header.save_as(first)
    with pytest.raises(ValueError, match="SOPInstanceUID"):
        write_seg(mask, LABELS, series, tmp_path / "seg.dcm", algorithm=NOTES)


def spoil_pixels(file: pydicom.Dataset) -> None:
    file.PixelData = bytes([file.PixelData[0] ^ 1]) + file.PixelData[1:]


def spoil_place(file: pydicom.Dataset) -> None:
    for frame in file.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.2


def spoil_order(file: pydicom.Dataset) -> None:
    frames = list(file.PerFrameFunctionalGroupsSequence)
    frames[0].PlanePositionSequence, frames[1].PlanePositionSequence = (
        frames[1].PlanePositionSequence, frames[0].PlanePositionSequence,
    )  # fmt: skip


def spoil_name(file: pydicom.Dataset) -> None:
    file.SegmentSequence[0].SegmentLabel = "spleen"


def spoil_frame(file: pydicom.Dataset) -> None:
    file.PerFrameFunctionalGroupsSequence = file.PerFrameFunctionalGroupsSequence[:-1]
    file.NumberOfFrames -= 1


@pytest.mark.parametrize("spoil", [spoil_pixels, spoil_place, spoil_order, spoil_name, spoil_frame])
def test_a_file_that_says_something_else_is_not_stored(
    tmp_path: Path, series: Path, mask: Volume, monkeypatch: pytest.MonkeyPatch, spoil: object
) -> None:
    right = dicom_seg._segmentation

    def wrong(*args: object) -> pydicom.Dataset:
        file = right(*args)
        spoil(file)
        return file

    monkeypatch.setattr(dicom_seg, "_segmentation", wrong)
    target = tmp_path / "out" / "seg.dcm"
    with pytest.raises(SegMismatch):
        write_seg(mask, LABELS, series, target, algorithm=NOTES)
    assert not list((tmp_path / "out").iterdir())


def test_the_comparison_finds_a_mask_that_was_mirrored(seg: Path, mask: Volume) -> None:
    labels = {name: value for name, value in LABELS.items() if name != "unseen"}
    check_seg(seg, mask, labels)
    for axis in range(3):
        with pytest.raises(SegMismatch):
            check_seg(seg, mask.with_array(np.flip(mask.array, axis)), labels)


def test_notes_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match="AUTOMATIC"):
        AlgorithmNotes("x", "1", kind="GUESSED")
    with pytest.raises(ValueError, match="64"):
        AlgorithmNotes("x" * 65, "1")
