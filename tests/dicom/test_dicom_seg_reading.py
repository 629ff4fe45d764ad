"""DICOM SEG files that other programs wrote, on the grids of their images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ssmsam.dicom.seg_reader import read_seg
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.volume.volume import Grid, Volume

DATA = Path(os.environ.get("SSMSAM_DATA", "../shared/data")) / "dicom_seg_rt"
DCMQI, HIGHDICOM = DATA / "dcmqi/data/segmentations", DATA / "highdicom/data/test_files"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no fixtures at {DATA}; SSMSAM_DATA names their folder")


@pytest.fixture
def ct() -> Volume:
    return read_volume(DCMQI / "ct-3slice")


@pytest.fixture
def edited(tmp_path: Path):
    """The liver fixture after a change, as a file."""

    def edit(change) -> Path:
        file = pydicom.dcmread(DCMQI / "liver.dcm")
        change(file)
        file.save_as(tmp_path / "edited.dcm")
        return tmp_path / "edited.dcm"

    return edit


def test_a_file_by_dcmqi_holds_what_it_was_made_of(ct: Volume) -> None:
    truth = read_volume(DCMQI / "liver_seg.nrrd")
    read = read_seg(DCMQI / "liver.dcm", ct.grid)
    assert list(read.labels) == ["Liver"]
    ijk = np.rint(ct.grid.to_ijk(truth.grid.to_lps(np.argwhere(truth.array)[:, ::-1]))).astype(int)
    expected = np.zeros(ct.shape, dtype=bool)
    expected[tuple(ijk.T[::-1])] = True
    assert expected.sum() == np.count_nonzero(truth.array) > 0
    np.testing.assert_array_equal(read.volume.array == read.labels["Liver"], expected)


def test_where_segments_overlap_the_later_covers_and_it_is_counted() -> None:
    truths = [read_volume(DCMQI / f"partial_overlaps-{n}.nrrd") for n in (1, 2, 3)]
    grid = truths[0].grid
    read = read_seg(DCMQI / "partial_overlaps.dcm", grid)
    claims = sum((truth.array > 0).astype(int) for truth in truths)
    assert read.overlap == (claims > 1).sum() > 0
    np.testing.assert_array_equal(read.volume.array > 0, claims > 0)


def test_fractional_pixels_count_from_a_half_on() -> None:
    binary = pydicom.dcmread(HIGHDICOM / "seg_image_ct_binary.dcm")
    grid = _grid_of(binary)
    expected = read_seg(HIGHDICOM / "seg_image_ct_binary.dcm", grid)
    fractional = read_seg(HIGHDICOM / "seg_image_ct_binary_fractional.dcm", grid)
    np.testing.assert_array_equal(fractional.volume.array, expected.volume.array)
    assert expected.volume.array.any()
    true = pydicom.dcmread(HIGHDICOM / "seg_image_ct_true_fractional.dcm")
    read = read_seg(HIGHDICOM / "seg_image_ct_true_fractional.dcm", grid)
    assert np.count_nonzero(read.volume.array) == (true.pixel_array >= true.MaximumFractionalValue / 2).sum()


def test_label_maps_are_read_too() -> None:
    for name in ("noppv", "ppv5"):
        truth = read_volume(DCMQI / f"sparse_labelmap_{name}_seg.nrrd")
        read = read_seg(DCMQI / f"sparse-labelmap-{name}.dcm", truth.grid)
        assert read.labels == {"Liver": 1}
        np.testing.assert_array_equal(read.volume.array, truth.array == 1)  # 5 is what dcmqi pads missing slices with


def test_what_is_no_segmentation_is_refused(ct: Volume, tmp_path: Path) -> None:
    with pytest.raises(UnreadableVolume, match="not a segmentation"):
        read_seg(DCMQI / "ct-3slice/01.dcm", ct.grid)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UnreadableVolume, match="not a readable DICOM"):
        read_seg(tmp_path / "text", ct.grid)


def test_another_grid_is_refused(ct: Volume) -> None:
    finer = ct.affine.copy()
    finer[:3, :2] /= 2
    shifted = ct.affine.copy()
    shifted[:3, 3] += ct.affine[:3, 0] / 2
    for affine in (finer, shifted):
        with pytest.raises(UnreadableVolume, match="do not lie on"):
            read_seg(DCMQI / "liver.dcm", Grid(ct.shape, affine))
    with pytest.raises(UnreadableVolume, match="beyond the image"):
        read_seg(DCMQI / "liver.dcm", Grid((1, 40, 40), ct.affine))


def test_a_spoilt_file_is_refused(ct: Volume, edited) -> None:
    def cut(file: pydicom.Dataset) -> None:
        file.PixelData = file.PixelData[: len(file.PixelData) // 2]

    def unplaced(file: pydicom.Dataset) -> None:
        for frame in file.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence

    def undescribed(file: pydicom.Dataset) -> None:
        file.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 5

    def doubled(file: pydicom.Dataset) -> None:
        frames = file.PerFrameFunctionalGroupsSequence
        frames[1].PlanePositionSequence = frames[0].PlanePositionSequence

    def thick(file: pydicom.Dataset) -> None:
        shared = file.SharedFunctionalGroupsSequence[0]
        shared.PixelMeasuresSequence[0].SpacingBetweenSlices = 2 * ct.spacing[0]
        del file.PerFrameFunctionalGroupsSequence[1]
        file.NumberOfFrames -= 1

    for change, complaint in (
        (thick, "coarser"),
        (cut, "cut off"),
        (unplaced, "PlanePosition"),
        (undescribed, "5"),
        (doubled, "finer"),
    ):
        with pytest.raises(UnreadableVolume, match=complaint):
            read_seg(edited(change), ct.grid)


def _grid_of(seg: pydicom.Dataset) -> Grid:
    """A grid through the frames of a small file whose frames follow one another."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    normal = np.cross(across, down)
    places = np.array(
        [f.PlanePositionSequence[0].ImagePositionPatient for f in seg.PerFrameFunctionalGroupsSequence], dtype=float
    )
    places = np.unique(places[np.argsort(places @ normal)].round(6), axis=0)
    depth = np.sort(places @ normal)
    step = float(np.diff(depth).min()) if len(depth) > 1 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * between_columns, down * between_rows, normal * step], axis=1)
    affine[:3, 3] = places[(places @ normal).argmin()]
    return Grid((round((depth[-1] - depth[0]) / step) + 1, int(seg.Rows), int(seg.Columns)), affine)
