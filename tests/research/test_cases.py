import json

import numpy as np
import pytest

from ssmsam.report import files_digest, run_manifest
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import open_set, read_notes

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        image = rng.integers(-100, 200, size=(4, 6, 5)).astype(np.int16)
        labels = np.zeros((4, 6, 5), dtype=np.uint8)
        labels[1:3, 2:4, 1:4] = 2
        for kind, array in (("images", image), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            write_volume(Volume(array, AFFINE), tmp_path / kind / f"{name}.nii.gz")
    write_volume(Volume(image, AFFINE), tmp_path / "images" / "unlabelled.nii.gz")
    return tmp_path


def test_cases_are_images_that_have_labels(folder):
    found = open_set(folder, label_names={2: "liver"})
    assert [case.name for case in found.cases] == ["a", "b", "c"]
    volume, labels = found.cases[0].read()
    assert volume.shape == labels.shape == (4, 6, 5)
    [(name, mask)] = found.targets(labels)
    assert (name, int(mask.sum())) == ("liver", 12)


def test_cases_are_chosen_by_name_and_number(folder):
    assert [case.name for case in open_set(folder, only=["c", "a"]).cases] == ["a", "c"]
    assert [case.name for case in open_set(folder, limit=1).cases] == ["a"]
    with pytest.raises(ValueError, match="no case x; it has a, b, c"):
        open_set(folder, only=["x"])


def test_labels_may_lie_in_a_folder_beside_the_images(folder):
    (folder / "images").rename(folder / "knee")
    (folder / "labels").rename(folder / "knee_labels")
    found = open_set(folder / "knee")
    assert found.name == "knee"
    assert [case.name for case in found.cases] == ["a", "b", "c"]


def test_a_folder_without_cases_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="expected images/NAME and labels/NAME"):
        open_set(tmp_path)


def test_labels_on_another_grid_are_refused(folder):
    moved = AFFINE.copy()
    moved[0, 3] = 7.0
    write_volume(Volume(np.zeros((4, 6, 5), dtype=np.uint8), moved), folder / "labels" / "a.nii.gz")
    with pytest.raises(ValueError, match="different grids"):
        open_set(folder).cases[0].read()


def test_notes_come_from_a_table_by_the_name_of_the_set(tmp_path):
    table = tmp_path / "labels.json"
    table.write_text(json.dumps({"abdomen": {"labels": {"1": "liver"}, "validation": ["a"]}}))
    notes = read_notes(table, "abdomen")
    assert notes.label_names == {1: "liver"}
    assert notes.validation == ("a",)
    assert read_notes(table, "other").label_names == {}
    table.write_text("[1, 2")
    with pytest.raises(ValueError, match="not a label table"):
        read_notes(table, "abdomen")


def test_digest_follows_content_and_name_but_not_order(folder):
    files = sorted((folder / "images").iterdir())
    before = files_digest(files)
    assert files_digest(reversed(files)) == before
    files[0].write_bytes(files[0].read_bytes() + b" ")
    assert files_digest(files) != before


def test_manifest_is_json_and_says_where_numbers_come_from(folder):
    manifest = run_manifest(protocol="clicks", data=open_set(folder).manifest(), weights={"small": "ab"}, seed=3)
    again = json.loads(json.dumps(manifest))
    assert again["data"]["cases"] == ["a", "b", "c"]
    assert again["threads"] >= 1
    assert again["versions"]["torch"]
    assert str(folder) not in json.dumps(manifest)
