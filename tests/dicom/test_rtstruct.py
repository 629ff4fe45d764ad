"""Masks to RT Structure Sets and back, on series in any orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.draw import polygon2mask
from test_dicom_seg import LABELS, NOTES, mask_on, series_of

from ssmsam.dicom import rtstruct
from ssmsam.dicom.rtstruct import contours_of, read_rtstruct, write_rtstruct
from ssmsam.dicom.seg_check import SegMismatch
from ssmsam.dicom.seg_writer import EmptySegmentation
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.volume import Volume


def filled(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for xy in contours:
        mask |= polygon2mask(shape, xy[:, ::-1])
    return mask


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_contours_give_back_any_mask(mask: np.ndarray) -> None:
    contours = contours_of(mask)
    np.testing.assert_array_equal(filled(contours, mask.shape), mask)
    assert all(len(xy) >= 4 for xy in contours)


def test_a_piece_with_holes_is_one_contour_and_an_island_in_a_hole_another() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:18, 2:28] = True
    mask[4:16, 4:14] = False
    mask[7:10, 7:10] = True
    mask[5:9, 18:22] = False
    contours = contours_of(mask)
    assert len(contours) == 2
    np.testing.assert_array_equal(filled(contours, mask.shape), mask)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "LSA"])
def test_what_is_written_is_read_back(tmp_path: Path, oblique: Volume, codes: str) -> None:
    volume = series_of(Volume(oblique.array.astype(np.int16), oblique.affine, "CT"), tmp_path / "series", codes=codes)
    mask = mask_on(volume)
    path = write_rtstruct(mask, LABELS, tmp_path / "series", tmp_path / "rt.dcm", algorithm=NOTES)
    read = read_rtstruct(path, volume.grid)
    assert list(read) == ["liver", "Nebenniere größe 肝", "left kidney", "right kidney"]
    for name, found in read.items():
        np.testing.assert_array_equal(found, mask.array == LABELS[name])


def test_it_refers_to_its_images(tmp_path: Path, ct: Volume) -> None:
    volume = series_of(ct, tmp_path / "series", shuffled=True)
    path = write_rtstruct(mask_on(volume), LABELS, tmp_path / "series", tmp_path / "rt.dcm", algorithm=NOTES)
    data = pydicom.dcmread(path)
    images = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, (tmp_path / "series").iterdir())}
    first = next(iter(images.values()))
    assert (data.Modality, data.PatientID, data.StudyInstanceUID) == ("RTSTRUCT", "T-1", first.StudyInstanceUID)
    assert data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == first.FrameOfReferenceUID
    for roi in data.ROIContourSequence:
        for contour in roi.ContourSequence:
            assert contour.NumberOfContourPoints == len(contour.ContourData) / 3
            image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            normal = np.cross(image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:])
            away = (np.reshape(contour.ContourData, (-1, 3)) - image.ImagePositionPatient) @ normal
            assert np.abs(away).max() < 0.01
    assert all(len(str(value)) <= 16 for value in data.ROIContourSequence[0].ContourSequence[0].ContourData)


def test_nothing_is_written_that_is_empty_or_not_read_back(
    tmp_path: Path, ct: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = series_of(ct, tmp_path / "series")
    mask = mask_on(volume)
    empty = mask.with_array(np.zeros_like(mask.array))
    with pytest.raises(EmptySegmentation):
        write_rtstruct(empty, LABELS, tmp_path / "series", tmp_path / "rt.dcm", algorithm=NOTES)
    monkeypatch.setattr(rtstruct, "contours_of", lambda mask: [np.array([[0, 0], [2.5, 0], [2.5, 2.5], [0, 2.5]])])
    with pytest.raises(SegMismatch):
        write_rtstruct(mask, LABELS, tmp_path / "series", tmp_path / "rt.dcm", algorithm=NOTES)
    assert not (tmp_path / "rt.dcm").exists()


def test_what_has_no_inside_and_what_is_no_structure_set(tmp_path: Path, ct: Volume) -> None:
    volume = series_of(ct, tmp_path / "series")
    path = write_rtstruct(mask_on(volume), LABELS, tmp_path / "series", tmp_path / "rt.dcm", algorithm=NOTES)
    whole, data = read_rtstruct(path, volume.grid), pydicom.dcmread(path)
    line, point = pydicom.Dataset(), pydicom.Dataset()
    line.ContourGeometricType, line.ContourData = (
        "OPEN_PLANAR",
        data.ROIContourSequence[0].ContourSequence[0].ContourData,
    )
    point.ContourGeometricType, point.ContourData = "POINT", line.ContourData[:3]
    data.ROIContourSequence[0].ContourSequence.extend([line, point])
    data.save_as(path)
    for name, mask in read_rtstruct(path, volume.grid).items():
        np.testing.assert_array_equal(mask, whole[name])
    data.ROIContourSequence[0].ReferencedROINumber = 77
    data.save_as(path)
    with pytest.raises(UnreadableVolume, match="region 77 is not described"):
        read_rtstruct(path, volume.grid)
    with pytest.raises(UnreadableVolume, match="not an RT Structure Set"):
        read_rtstruct(next((tmp_path / "series").iterdir()), volume.grid)
