"""Labelled slices from files on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted import COLUMNS, ORGAN, OTHER, draw_volume

from fakes import PocketEncoder
from ssmsam.api import support_of
from ssmsam.cli.adapt import (
    LabelledFile,
    LabelledImage,
    examples_from,
    label_numbers,
    parse_names,
    parse_slices,
    read_labelled,
)
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.support import NothingToLearn, Support
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import reoriented
from ssmsam.volume.writing import write_volume


def support_from(
    images: list[LabelledImage], numbers: dict[str, int], embedder: Embedder, *, plane: str | None = None
) -> Support:
    return support_of(examples_from(images, numbers, plane=plane), embedder, plane=plane)


LABELS = np.where(ORGAN, 1, np.where(OTHER, 7, 0)).astype(np.uint8)


@pytest.fixture
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


@pytest.fixture
def files(tmp_path: Path) -> LabelledFile:
    volume = draw_volume()
    write_volume(volume, tmp_path / "image.nii.gz")
    write_volume(volume.with_array(LABELS), tmp_path / "labels.nii.gz")
    return LabelledFile(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz")


def chosen(files: LabelledFile, *slices: int) -> LabelledFile:
    return LabelledFile(files.image, files.labels, slices)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("4", (4,)),
        ("0", (0,)),
        ("10,20-40:5", (10, 20, 25, 30, 35, 40)),
        ("3-5,4,9", (3, 4, 5, 9)),
        ("7-8:5", (7,)),
        ("5-5", (5,)),
        ("9,1", (1, 9)),
    ],
)
def test_slices_are_numbers_and_ranges_with_both_ends(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_slices(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "5-3", "1-9:0", "1,,2", "-4", "1-", "3:2", "1 2"])
def test_other_slices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"slices are numbers and ranges such as 10,20-40:5"):
        parse_slices(text)


def test_a_support_is_split_at_its_colons() -> None:
    assert LabelledFile.parse("a/b.nii.gz:c.nrrd") == LabelledFile(Path("a/b.nii.gz"), Path("c.nrrd"))
    ranges = LabelledFile.parse("ct:seg.nii:1,4-8:2")
    assert ranges == LabelledFile(Path("ct"), Path("seg.nii"), (1, 4, 6, 8))
    for wrong in ("image.nii.gz", "a:b:c:d", ":b", "a:", "a:b:", "a:b:x"):
        with pytest.raises(ValueError, match="IMAGE:LABEL"):
            LabelledFile.parse(wrong)


def test_names_have_numbers() -> None:
    assert parse_names(["liver=1", "left kidney=12", "a=b=3"]) == {"liver": 1, "left kidney": 12, "a=b": 3}
    for wrong in (["liver"], ["liver="], ["=1"], ["liver=0"], ["liver=x"], ["a=1", "a=2"], ["a=1", "b=1"]):
        with pytest.raises(ValueError, match=r"NAME=NUMBER|second time"):
            parse_names(wrong)


def test_labels_are_those_named_or_all_found(files: LabelledFile) -> None:
    image = read_labelled(files)
    assert label_numbers([image]) == {"label 1": 1, "label 7": 7}
    assert label_numbers([image], {"stone": 7}) == {"stone": 7}
    with pytest.raises(NothingToLearn, match="no label map holds spleen=2; the numbers found are 1, 7"):
        label_numbers([image], {"organ": 1, "spleen": 2})


def test_by_default_every_slice_that_shows_a_label_is_truth(files: LabelledFile, embedder: Embedder) -> None:
    support = support_from([read_labelled(files)], {"organ": 1, "other": 7}, embedder)
    for label, number in (("organ", 1), ("other", 7)):
        shows = np.flatnonzero((number == LABELS).any(axis=(1, 2)))
        assert [one.index for one in support[label]] == shows.tolist()
        for one in support[label]:
            np.testing.assert_array_equal(one.mask, LABELS[one.index] == number)
            assert (one.image, one.known) == ("image.nii.gz", None)
    opened = support["organ"][0].embeddings
    assert opened.done.tolist() == (LABELS > 0).any(axis=(1, 2)).tolist(), "embedded, and nothing else"


def test_listed_slices_may_be_empty(files: LabelledFile, embedder: Embedder) -> None:
    support = support_from([read_labelled(chosen(files, 0, 4))], {"organ": 1, "other": 7}, embedder)
    assert [(one.index, bool(one.mask.any())) for one in support["organ"]] == [(0, False), (4, True)]


def test_what_a_map_never_draws_was_not_looked_for(files: LabelledFile, embedder: Embedder, tmp_path: Path) -> None:
    organ_only = tmp_path / "organ.nii.gz"
    write_volume(draw_volume().with_array(np.where(LABELS == 1, LABELS, 0)), organ_only)
    images = [read_labelled(LabelledFile(files.image, organ_only, (0, 4))), read_labelled(chosen(files, 5))]
    support = support_from(images, {"organ": 1, "other": 7}, embedder)
    assert [one.index for one in support["organ"]] == [0, 4, 5]
    assert [one.index for one in support["other"]] == [5]


def test_a_slice_given_twice_counts_once_unless_it_differs(
    files: LabelledFile, embedder: Embedder, tmp_path: Path
) -> None:
    twice = [read_labelled(chosen(files, 3, 4)), read_labelled(chosen(files, 4, 5))]
    assert [one.index for one in support_from(twice, {"organ": 1}, embedder)["organ"]] == [3, 4, 5]
    other = tmp_path / "other.nii.gz"
    write_volume(draw_volume().with_array(np.roll(LABELS, 2, axis=2)), other)
    images = [read_labelled(chosen(files, 4)), read_labelled(LabelledFile(files.image, other, (4,)))]
    with pytest.raises(ValueError, match=r"draw organ differently on slice 4 of image\.nii\.gz"):
        support_from(images, {"organ": 1}, embedder)


def test_planes_of_the_body_are_found_in_any_storage_order(
    files: LabelledFile, embedder: Embedder, tmp_path: Path
) -> None:
    turned = reoriented(draw_volume().with_array(LABELS), "SAR")
    write_volume(turned, tmp_path / "turned.nii.gz")
    write_volume(reoriented(draw_volume(), "SAR"), tmp_path / "turned_image.nii.gz")
    image = read_labelled(LabelledFile(tmp_path / "turned_image.nii.gz", tmp_path / "turned.nii.gz"), plane="sagittal")
    (slices,) = support_from([image], {"organ": 1}, embedder, plane="sagittal").values()
    assert {one.embeddings.count for one in slices} == {COLUMNS}
    assert {one.embeddings.plane for one in slices} == {Plane(0)}
    assert len(slices) == ORGAN.any(axis=(0, 1)).sum()


def test_slices_outside_the_volume_are_refused(files: LabelledFile) -> None:
    with pytest.raises(ValueError, match=r"image\.nii\.gz has the slices 0 to 8 in this plane, but 9 is listed"):
        read_labelled(chosen(files, 3, 9))
    assert read_labelled(chosen(files, 3, 9), plane="sagittal").slices == (3, 9)


def test_files_that_do_not_belong_together_are_refused(files: LabelledFile, tmp_path: Path) -> None:
    moved = draw_volume().affine.copy()
    moved[2, 3] += 3
    write_volume(draw_volume(affine=moved).with_array(LABELS), tmp_path / "moved.nii.gz")
    with pytest.raises(ValueError, match=r"does not lie on the grid.*resample the label map"):
        read_labelled(LabelledFile(files.image, tmp_path / "moved.nii.gz"))
    with pytest.raises(ValueError, match=r"image\.nii\.gz is not a label map"):
        read_labelled(LabelledFile(files.image, files.image))
    with pytest.raises(UnreadableVolume, match="no such file"):
        read_labelled(LabelledFile(files.image, tmp_path / "none.nii.gz"))
