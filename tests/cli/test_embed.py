import json

import numpy as np
import pytest

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.nii.gz", "two.nrrd"):
        write_volume(Volume(rng.normal(size=(3, 20, 24)).astype(np.float32), np.eye(4)), folder / name)
    return folder


def test_a_second_run_has_nothing_to_do(studies, tmp_path, random_small, load_app):
    program, record = load_app("embed"), tmp_path / "embed.json"
    options = [
        str(studies),
        "--weights",
        str(random_small.weights),
        "--store",
        str(tmp_path / "store"),
        "--allow-unverified",
    ]
    assert program.main([*options, "--json", str(record)]) == 0
    first = json.loads(record.read_text())
    assert [(study["name"], study["encoded"]) for study in first["studies"]] == [("one.nii.gz", 3), ("two.nrrd", 3)]
    assert program.main([*options, "--json", str(record)]) == 0
    assert [study["encoded"] for study in json.loads(record.read_text())["studies"]] == [0, 0]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(studies, tmp_path, random_small, load_app, capsys):
    (studies / "broken.nii.gz").write_bytes(b"not an image")
    options = ["--weights", str(random_small.weights), "--store", str(tmp_path / "store"), "--allow-unverified"]
    assert load_app("embed").main([str(studies), *options]) == 1
    said = capsys.readouterr()
    assert "broken.nii.gz: left out" in said.err
    assert "two.nrrd: 3 slices, 3 of them new" in said.out


def test_an_empty_folder_says_what_is_expected(tmp_path, load_app, capsys):
    assert load_app("embed").main([str(tmp_path)]) == 2
    assert "holds no volume: expected .nii.gz" in capsys.readouterr().err
