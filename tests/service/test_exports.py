"""Annotated studies as files of other programs: what is known stays, and nothing else is claimed."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pocket_service import AFFINE, LABELS, SHAPE, annotate, make_service, truth

from ssmsam.annotation.annotations import Annotations, SliceAnnotation, SliceKey, Source, Update
from ssmsam.cli.command import main
from ssmsam.dicom.rtstruct import read_rtstruct
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.ops import PackedMask
from ssmsam.reading import read_volume
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.exports import (
    FORMATS,
    annotated_labels,
    folder_cases,
    nnunet_target,
    studies_cases,
    write_labels,
    write_nnunet,
)
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.volume.volume import Grid, Volume, reoriented

GRID = Grid((3, 4, 5), np.diag([1.0, 2.0, 3.0, 1.0]))


@pytest.fixture
def service(tmp_path: Path) -> FewShotService:
    return make_service(tmp_path, images=("a", "b", "odd name", "new"))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "LSA"])
def test_every_format_gives_back_the_mask(tmp_path: Path, codes: str) -> None:
    random = np.random.default_rng(1)
    image = reoriented(
        Volume(random.integers(-90, 200, (5, 12, 14), dtype=np.int16), np.diag([1.0, 2, 3, 1]), "CT"), codes
    )
    if np.linalg.det(image.affine[:3, :3]) < 0:
        image = reoriented(image, codes[:2] + {"S": "I", "I": "S", "A": "P", "P": "A", "R": "L", "L": "R"}[codes[2]])
    write_dicom_series(image, tmp_path / "series", patient=DicomPatient("Test^One", "1", "test"))
    image = read_volume(tmp_path / "series")
    mask = image.with_array((random.random(image.shape) < 0.3).astype(np.uint8))
    mask.array[2, 3:6, 4:8] = 2
    labels = {"liver": 1, "spleen": 2}
    for format, suffix in FORMATS.items():
        path = write_labels(mask, labels, tmp_path / f"out{suffix}", format=format, source=tmp_path / "series")
        if format == "rtstruct":
            read = sum(labels[name] * found for name, found in read_rtstruct(path, image.grid).items())
        elif format == "dicom_seg":
            read = read_seg(path, image.grid).volume.array
        else:
            written = read_volume(path)
            assert written.grid.matches(image.grid)
            read = written.array
        np.testing.assert_array_equal(read, mask.array, err_msg=format)


def test_labels_overlap_in_the_formats_of_dicom(tmp_path: Path) -> None:
    image = Volume(np.arange(60, dtype=np.int16).reshape(GRID.shape), GRID.affine, "CT")
    write_dicom_series(image, tmp_path / "series", patient=DicomPatient("Test^One", "1", "test"))
    organ, lesion = np.zeros((2, *GRID.shape), bool)
    organ[1, 1:, 1:] = True
    lesion[1, 2, 2:4] = True
    known = Annotations(GRID)
    for label, mask in (("lesion", lesion), ("node", lesion), ("organ", organ)):  # the later covers the earlier
        entry = SliceAnnotation(PackedMask.of(mask[1]), Source.CLIENT, "r")
        known = known.merge(Update(GRID, {SliceKey(label, 0, 1): entry}))
    mask, values, covered = annotated_labels(known)
    assert {label: int(area.sum()) for label, area in covered.items()} == {"lesion": 2, "node": 2}
    assert set(np.unique(mask.array)) == {0, values["organ"]}
    for format in ("dicom_seg", "rtstruct"):
        path = tmp_path / f"{format}.dcm"
        write_labels(mask, values, path, format=format, source=tmp_path / "series", covered=covered)
        drawn = {"lesion": lesion, "node": lesion, "organ": organ}
        if format == "dicom_seg":
            seg = hd.seg.segread(path)
            numbers = {item.SegmentLabel: item.SegmentNumber for item in seg.SegmentSequence}
            read = {
                name: seg.get_pixels_by_source_instance(
                    [uid for _, _, uid in seg.get_source_image_uids()], segment_numbers=[number]
                )[..., 0]
                for name, number in numbers.items()
            }
            assert {name: int(found.sum()) for name, found in read.items()} == {
                name: int(area.sum()) for name, area in drawn.items()
            }
        else:
            np.testing.assert_equal(read_rtstruct(path, image.grid), drawn)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    mask = Volume(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    for format, source, said in (
        ("stl", None, "choose one of nifti"),
        ("rtstruct", tmp_path / "image.nii.gz", "a file of another kind"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            write_labels(mask, {"liver": 1}, tmp_path / "out", format=format, source=source)
    with pytest.raises(InvalidRequest, match="no slice of liver is annotated"):
        annotated_labels(Annotations(GRID), only=["liver"])


@given(st.data())
def test_a_target_says_what_is_known_and_ignores_the_rest(data: st.DataObject) -> None:
    keys = data.draw(st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 2))))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    entries = {
        SliceKey(label, 0, k): SliceAnnotation(PackedMask.of(random.random((4, 5)) < 0.4), Source.CLIENT, "r")
        for label, k in keys
    }
    target = nnunet_target(Annotations(GRID).merge(Update(GRID, entries)), {"a": 1, "b": 2})
    for k in range(3):
        masks = {label: entries[SliceKey(label, 0, k)].mask.array for label in "ab" if (label, k) in keys}
        drawn = np.any(list(masks.values()), axis=0) if masks else np.zeros((4, 5), bool)
        np.testing.assert_array_equal((target[k] == 1) | (target[k] == 2), drawn)
        assert set(np.unique(target[k][~drawn])) <= {0 if len(masks) == 2 else 3}


def test_a_target_of_many_labels() -> None:
    """One more number than labels is needed: that of what is unknown."""
    grid = Grid((1, 20, 20), np.eye(4))
    names = [f"label {n:03d}" for n in range(255)]
    masks = (np.arange(400).reshape(20, 20) == n for n in range(255))
    drawn = zip(names, masks, strict=True)
    entries = {SliceKey(name, 0, 0): SliceAnnotation(PackedMask.of(mask), Source.CLIENT, "r") for name, mask in drawn}
    values = {name: value for value, name in enumerate([*names, "unseen"], start=1)}
    target = nnunet_target(Annotations(grid).merge(Update(grid, entries)), values)
    np.testing.assert_array_equal(target.ravel(), [*range(1, 256), *[257] * 145])


def test_a_data_set_of_nnunet(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": list(range(SHAPE[0])), "spleen": list(range(SHAPE[0]))}, tmp_path, complete=True)
    annotate(service, "odd name", {"liver": [3, 4]}, tmp_path)
    report = write_nnunet(studies_cases(service.studies, service.images), tmp_path / "one", labels=LABELS)
    assert report["left_out"] == {"odd name": "it is not finished"}
    content = json.loads((tmp_path / "one" / "dataset.json").read_text())
    assert content == {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    image, label = (nib.load(tmp_path / "one" / part) for part in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"))
    np.testing.assert_allclose(image.header.get_zooms(), [1.5, 1.5, 5.0])
    np.testing.assert_allclose(image.affine, label.affine)
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ AFFINE, atol=1e-5)
    np.testing.assert_array_equal(np.asanyarray(label.dataobj).T, truth())

    assert main(["export", str(tmp_path / "studies"), "--format", "nnunet", "--only", "annotated",
                 "--names", "liver=1", "spleen=2", "--out", str(tmp_path / "two")]) == 0  # fmt: skip
    content = json.loads((tmp_path / "two" / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert content["numTraining"] == 2
    found = read_volume(tmp_path / "two" / "labelsTr" / "odd_name.nii.gz").array
    assert (found[3] == 1).sum() == (truth()[3] == 1).sum()
    assert set(np.unique(found)) == {1, 3}, "spleen is not known anywhere, so nothing is background"
    with pytest.raises(InvalidRequest, match=r"no image is left .*\(a: it is MR\).* another modality"):
        write_nnunet(folder_cases(tmp_path / "studies"), tmp_path / "three", modality="CT", finished=False)
    with pytest.raises(InvalidRequest, match=r"odd name: it is not finished\).*--only annotated, .* only=annotated"):
        write_nnunet((one for one in folder_cases(tmp_path / "studies") if one.name != "a"), tmp_path / "three")
    assert main(["export", str(tmp_path / "studies"), "--format", "nnunet", "--out", str(tmp_path / "two")]) == 2
