"""What DICOM SEG files of other programs mean, and which of them mean nothing certain."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from planted_seg import Planted, plant_seg
from planted_volume import volume_of
from pydicom.dataelem import RawDataElement
from pydicom.sr.codedict import codes
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from ssmsam.dicom.seg_reader import SegMask, read_seg, read_segs
from ssmsam.dicom.series import find_series
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.reading import UnreadableVolume
from ssmsam.volume.volume import Volume

ORGAN = np.zeros((5, 7, 9), bool)
ORGAN[1:5, 1:6, 1:7] = True
LESION = np.zeros_like(ORGAN)
LESION[2:4, 2:4, 2:5] = True
BESIDE = np.zeros_like(ORGAN)
BESIDE[1:3, 4:7, 5:9] = True


@pytest.fixture
def series(tmp_path: Path, ct: Volume) -> Path:
    write_dicom_series(ct, tmp_path / "series", patient=DicomPatient("Doe^Jane", "1"))
    return tmp_path / "series"


@pytest.fixture
def read(tmp_path: Path, series: Path) -> Callable[..., SegMask]:
    def read(*segments: Planted, **says: object) -> SegMask:
        return read_seg(plant_seg(tmp_path / "seg.dcm", series, segments, **says), find_series(series).grid)

    return read


def where(found: SegMask, name: str) -> np.ndarray:
    return found.volume.array == found.labels[name]


def test_names_are_one_line(read: Callable[..., SegMask]) -> None:
    assert list(read((1, " left\n lung", ORGAN), (2, "\n", BESIDE)).labels) == ["left lung", "segment 2"]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_lesion_is_not_hidden_by_its_organ(read: Callable[..., SegMask], order: tuple[int, int]) -> None:
    segments = [(order[0], "lesion", LESION), (order[1], "organ", ORGAN)]
    found = read(*sorted(segments, key=lambda one: one[0]))
    np.testing.assert_array_equal(where(found, "lesion"), LESION)
    np.testing.assert_array_equal(where(found, "organ"), ORGAN & ~LESION)
    assert found.overlap == LESION.sum()
    assert found.notes == (
        f"segments overlap in {LESION.sum()} voxels; the smaller covers the larger there, which hides voxels: "
        f"{LESION.sum()} of organ",
    )


@pytest.mark.parametrize("degrees", [0, 25])
def test_a_seg_in_any_orientation_is_where_its_own_geometry_says(tmp_path: Path, degrees: float) -> None:
    """On a cube of 8 x 8 x 8 voxels nothing but the geometry tells one axis or direction from another."""
    volume = volume_of(degrees, modality="CT")
    cube = np.random.default_rng(0).integers(0, 99, (8, 8, 8)).astype(np.int16)
    affine = volume.affine.copy()
    affine[:3, :3] /= volume.spacing[::-1]
    write_dicom_series(Volume(cube, affine, "CT"), tmp_path / "series", patient=DicomPatient("Doe^Jane", "1"))
    series = find_series(tmp_path / "series")
    images = [pydicom.dcmread(file) for file in series.files]
    mask = cube > 60
    for order in permutations(range(3)):
        for steps in product((1, -1), repeat=3):
            axes = [series.grid.affine[:3, 2 - axis] for axis in order]
            start = series.grid.affine[:3, 3] + sum(7 * a for a, step in zip(axes, steps, strict=True) if step < 0)
            between, down, along = (axis * step for axis, step in zip(axes, steps, strict=True))
            seg = hd.seg.Segmentation(
                images,
                mask.transpose(order)[:: steps[0], :: steps[1], :: steps[2]],
                "BINARY",
                [hd.seg.SegmentDescription(1, "liver", codes.SCT.Organ, codes.SCT.Liver, "MANUAL")],
                *(hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "1"),
                plane_orientation=hd.PlaneOrientationSequence("PATIENT", [*along, *down]),
                plane_positions=[hd.PlanePositionSequence("PATIENT", start + k * between) for k in range(8)],
                pixel_measures=hd.PixelMeasuresSequence((1, 1), 1, 1),
            )
            seg.save_as(tmp_path / "seg.dcm")
            read = read_seg(tmp_path / "seg.dcm", series.grid).volume
            np.testing.assert_array_equal(read.array, mask, err_msg=f"{order} {steps}")


def test_segments_that_overlap_in_part(read: Callable[..., SegMask]) -> None:
    found = read((1, "beside", BESIDE), (2, "organ", ORGAN), (3, "lesion", LESION))
    np.testing.assert_array_equal(where(found, "beside"), BESIDE)
    np.testing.assert_array_equal(where(found, "organ"), ORGAN & ~LESION & ~BESIDE)
    assert found.overlap == (LESION | (BESIDE & ORGAN)).sum()


def test_segments_that_do_not_overlap_have_no_note(read: Callable[..., SegMask]) -> None:
    found = read((2, "liver", LESION), (7, "spleen", BESIDE))
    assert (found.labels, found.overlap, found.notes) == ({"liver": 2, "spleen": 7}, 0, ())
    np.testing.assert_array_equal(found.volume.array, LESION * 2 + BESIDE * 7)


def test_segments_of_one_name_are_one_label_and_it_is_said(read: Callable[..., SegMask]) -> None:
    found = read((1, "node", LESION), (2, " node", BESIDE), (3, "", ORGAN & ~LESION & ~BESIDE))
    assert list(found.labels) == ["node", "segment 3"]
    np.testing.assert_array_equal(where(found, "node"), LESION | BESIDE)
    assert found.notes == ("2 segments named node are one label",)


@pytest.mark.parametrize("name", ["background", "Background", "BACKGROUND "])
def test_background_is_no_label(read: Callable[..., SegMask], name: str) -> None:
    found = read((1, name, ~ORGAN), (2, "organ", ORGAN))
    assert list(found.labels) == ["organ"]
    np.testing.assert_array_equal(where(found, "organ"), ORGAN)
    assert found.notes == (f"a segment named {name.strip()} is no label",)


def test_a_backslash_in_a_name_is_kept(read: Callable[..., SegMask]) -> None:
    assert list(read((1, "left\\right", ORGAN)).labels) == ["left\\right"]


def test_fractions_count_from_a_half_of_the_whole(read: Callable[..., SegMask]) -> None:
    found = read((1, "liver", LESION * 255 + BESIDE * 100), kind="FRACTIONAL", whole=255)
    np.testing.assert_array_equal(where(found, "liver"), LESION)
    found = read((1, "liver", LESION * 1), kind="FRACTIONAL")  # whatever the whole is, 0 and 1 are outside and inside
    np.testing.assert_array_equal(where(found, "liver"), LESION)


@pytest.mark.parametrize(
    ("values", "whole", "message"),
    [(LESION * 200, None, "unknown whole"), (LESION * 1, 255, "no fraction reaches a half: the largest is 1 of 255")],
)
def test_fractions_of_something_else_are_refused(
    read: Callable[..., SegMask], values: np.ndarray, whole: int | None, message: str
) -> None:
    with pytest.raises(UnreadableVolume, match=message):
        read((1, "liver", values), kind="FRACTIONAL", whole=whole)


def test_a_segmentation_of_nothing(read: Callable[..., SegMask]) -> None:
    nothing = np.zeros_like(ORGAN)
    for edit in (None, lambda seg: seg.pop("PixelData")):
        found = read((1, "liver", nothing), edit=edit)
        assert found.labels == {"liver": 1}
        assert not found.volume.array.any()


def whole_bytes(seg: pydicom.Dataset) -> None:
    seg.PixelData = seg.pixel_array.astype(np.uint8).tobytes()
    seg.BitsAllocated = seg.BitsStored = 8
    seg.HighBit = 7


def rle(seg: pydicom.Dataset) -> None:
    whole_bytes(seg)
    seg.compress(RLELossless, generate_instance_uid=False)


def deflated(seg: pydicom.Dataset) -> None:
    seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


@pytest.mark.parametrize("pack", [whole_bytes, rle, deflated])
def test_packings(read: Callable[..., SegMask], pack: Callable[[pydicom.Dataset], None]) -> None:
    found = read((1, "liver", LESION), (5, "spleen", BESIDE), edit=pack)
    np.testing.assert_array_equal(found.volume.array, LESION * 1 + BESIDE * 5)


def comma(seg: pydicom.Dataset) -> None:
    place = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    tag = pydicom.tag.Tag(0x00200032)
    place[tag] = RawDataElement(tag, "DS", 14, b"-70,0\\-60,0\\1 ", 0, False, True)


def same_number(seg: pydicom.Dataset) -> None:
    seg.SegmentSequence[1].SegmentNumber = 1


def one_frame_less(seg: pydicom.Dataset) -> None:
    seg.NumberOfFrames -= 1


def far_away(seg: pydicom.Dataset) -> None:
    seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = ["1e300", "0", "0"]


def of_half_the_rows(seg: pydicom.Dataset) -> None:
    seg.Rows = seg.Rows // 2


def no_rows(seg: pydicom.Dataset) -> None:
    seg.Rows = 0


def gigabytes(seg: pydicom.Dataset) -> None:
    seg.Rows = seg.Columns = 65535


def gigabytes_in_rle(seg: pydicom.Dataset) -> None:
    rle(seg)
    gigabytes(seg)


def odd_bits(seg: pydicom.Dataset) -> None:
    seg.BitsAllocated = 12


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda seg: seg.pop("PixelData"), "no pixels"),
        (lambda seg: seg.pop("Rows"), "cannot be read"),
        (lambda seg: seg.SegmentSequence[0].pop("SegmentNumber"), "cannot be read"),
        (comma, "70,0"),
        (same_number, "several segments have one number"),
        (one_frame_less, "says 3 frames and describes 4"),
        (far_away, "nowhere near"),
        (of_half_the_rows, "not those of"),
        (no_rows, "not those of"),
        (gigabytes, "cut off"),
        (gigabytes_in_rle, "claims"),
        (odd_bits, "12 bits"),
    ],
)
def test_what_breaks_the_rules_is_refused(
    read: Callable[..., SegMask], edit: Callable[[pydicom.Dataset], None], message: str
) -> None:
    with pytest.raises(UnreadableVolume, match=message) as refused:
        read((1, "liver", LESION), (2, "spleen", BESIDE), edit=edit)
    assert str(refused.value).count("seg.dcm") == 1


def test_of_several_files_the_newest_that_has_a_label_counts(tmp_path: Path, series: Path) -> None:
    grid = find_series(series).grid
    new = plant_seg(tmp_path / "new.dcm", series, [(1, "spleen", BESIDE)])
    old = plant_seg(tmp_path / "old.dcm", series, [(1, "liver", LESION), (2, "spleen", ORGAN)])
    found = read_segs([new, old], grid)
    assert found.labels == {"spleen": 1, "liver": 2}
    assert found.source == {"spleen": 0, "liver": 1}
    np.testing.assert_array_equal(where(found, "spleen"), BESIDE)
    np.testing.assert_array_equal(where(found, "liver"), LESION & ~BESIDE)


def test_an_organ_in_a_newer_file_does_not_hide_its_lesion_in_an_older(tmp_path: Path, series: Path) -> None:
    new = plant_seg(tmp_path / "new.dcm", series, [(1, "organ", ORGAN)])
    old = plant_seg(tmp_path / "old.dcm", series, [(1, "lesion", LESION)])
    found = read_segs([new, old], find_series(series).grid)
    np.testing.assert_array_equal(where(found, "lesion"), LESION)
    assert found.overlap == LESION.sum()


def test_files_that_cannot_be_read_are_left_out_with_their_reason(tmp_path: Path, series: Path) -> None:
    grid = find_series(series).grid
    good = plant_seg(tmp_path / "good.dcm", series, [(1, "liver", LESION)])
    bad = plant_seg(tmp_path / "bad.dcm", series, [(1, "spleen", BESIDE)], edit=comma)
    found = read_segs([bad, good], grid)
    np.testing.assert_array_equal(where(found, "liver"), LESION)
    assert "70,0" in found.left_out[0]
    assert list(found.labels) == ["liver"]
    with pytest.raises(UnreadableVolume, match="70,0"):
        read_segs([bad, bad], grid)


def test_an_element_of_no_known_kind_is_refused_like_everything_else(tmp_path: Path, series: Path) -> None:
    path = plant_seg(tmp_path / "seg.dcm", series, [(1, "liver", LESION)])
    frame_of_reference = b"\x20\0\x52\0"
    path.write_bytes(path.read_bytes().replace(frame_of_reference + b"UI", frame_of_reference + b"U1"))
    with pytest.raises(UnreadableVolume, match=r"U1|0x55"):
        read_seg(path, find_series(series).grid)
