"""The one command: what it lists, how it ends, and that each part of it takes --json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ssmsam import read_volume, write_volume
from ssmsam.cli import main
from ssmsam.cli.command import COMMANDS, FAILED, ssmsam
from ssmsam.cli.samples import LABELS, sample_cases
from ssmsam.dicom.rtstruct import read_rtstruct
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.reading import read_grid
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import read_notes

ROOT = Path(__file__).parents[2]
LAUNCHERS = {name: f"{name}.py" for name in COMMANDS} | {"train": "pretrain.py"}


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_loads_takes_json_and_has_a_launcher(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ssmsam.get_command(None, name)
    if name in ("benchmark", "train"):  # parsed by ssmsam_research
        with pytest.raises(SystemExit):
            main([name, *(["clicks"] if name == "benchmark" else []), "--help"])
        assert "--json" in capsys.readouterr().out
    else:
        assert "--json" in {name for option in command.params for name in option.opts}
    assert f'launcher("{name}")' in (ROOT / "apps" / LAUNCHERS[name]).read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["adapt"], "Missing option '--support'"),
        (["adapt", "--support"], "requires an argument"),
        (["segment", "--query", "a", "--out", "b.nii.gz", "--methods", "x"], "No such option"),
        (["serve", "no/such/folder"], "there is no folder no/such/folder"),
        (["export", "mask.nii.gz", "--series", "s", "--out", "seg.dcm"], "give --names"),
        (["export", "mask.nii.gz", "--series", "s", "--out", "seg", "--names", "liver=1"], "ends in .dcm"),
        (["export", "mask.nii.gz", "--out", "rt.dcm", "--names", "liver=1", "--format", "rtstruct"], "give --series"),
        (["export", "mask.nii.gz", "--out", "mask.nrrd", "--format", "nifti"], "ends in .nii.gz"),
        (["export", ".", "--out", "no_such", "--format", "nnunet"], "no image is left"),
        (["samples", "--out", "x", "--only", "ct_99"], "there are ct_01"),
        (["doctor", "--download", "small"], "--download"),
        (["embed", "no/such/folder"], "there is no such folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["benchmark", "train"])
def test_what_needs_research_says_how_to_have_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ssmsam.cli.command.find_spec", lambda _: None)
    assert main([name, "--help"]) == 2
    assert "clone the repository" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "missing"), [("demo", "monailabel"), ("serve", "monailabel")])
def test_without_the_server_s_packages_it_says_how_to_have_them(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, f"ssmsam.cli.{name}", raising=False)
    monkeypatch.setattr("sys.meta_path", [Without(missing), *sys.meta_path])
    for module in [one for one in sys.modules if one.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    assert main([name, str(tmp_path)][: 2 if name == "serve" else 1]) == 2
    assert 'pip install "ssmsam[server]"' in capsys.readouterr().err


class Without:
    """Hides a package."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_values_belong_to_their_option_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["segment", "--support", "a:b", "c:d:1", "--names", "liver=1", "spleen=2", "--names", "aorta=3"]
    context = ssmsam.get_command(None, "segment").make_context(
        "segment", [*options[1:], "--query", "q", "--out", "o.nii.gz"]
    )
    assert context.params["names"] == ("liver=1", "spleen=2", "aorta=3")
    assert [str(one.image) for one in context.params["support"]] == ["a", "c"]


def test_samples_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    record = tmp_path / "samples.json"
    assert main(["samples", "--out", str(tmp_path / "s"), "--only", "ct_01", "mr_04", "--json", str(record)]) == 0
    assert json.loads(record.read_text())["images"] == ["ct_01.nii.gz", "mr_04.nii.gz"]
    for folder in ("abdomen", "abdomen_labels"):
        assert read_grid(tmp_path / "s" / folder / "ct_01.nii.gz").shape == (44, 160, 160)


def test_sample_labels_mean_the_same_everywhere() -> None:
    assert read_notes(ROOT / "benchmarks" / "labels.json", "abdomen").label_names == LABELS
    assert [(case.name, case.seed, case.contrast) for case in sample_cases()] == [
        ("ct_01", 11, "CT"), ("ct_02", 12, "CT"), ("ct_03", 13, "CT"), ("mr_04", 14, "T2"), ("mr_05", 15, "T1"),
    ]  # fmt: skip


def test_a_label_map_is_exported_as_dicom_seg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Volume(np.zeros((4, 16, 16), np.int16), np.diag([2.0, 2.0, 5.0, 1.0]), modality="CT")
    write_dicom_series(image, tmp_path / "series", patient=DicomPatient("Test^One", "1", "test"))
    mask = np.zeros(image.shape, np.uint8)
    mask[1:3, 4:9, 5:10] = 7
    write_volume(image.with_array(mask), tmp_path / "mask.nii.gz")
    out, record = tmp_path / "seg.dcm", tmp_path / "export.json"
    wanted = ["export", str(tmp_path / "mask.nii.gz"), "--series", str(tmp_path / "series"), "--out", str(out)]
    assert main([*wanted, "--names", "liver=1"]) == 2
    assert "Name every value" in capsys.readouterr().err
    assert not out.exists()
    assert main([*wanted, "--names", "liver=7", "--json", str(record)]) == 0
    seg = read_seg(out, image.grid)
    assert seg.labels == {"liver": 7}
    np.testing.assert_array_equal(seg.volume.array, mask)
    assert json.loads(record.read_text())["labels"] == {"liver": 7}
    assert read_volume(tmp_path / "mask.nii.gz").grid.matches(image.grid)
    structures = tmp_path / "rt.dcm"
    assert main([*wanted[:-1], str(structures), "--names", "liver=7", "--format", "rtstruct"]) == 0
    np.testing.assert_array_equal(read_rtstruct(structures, image.grid)["liver"], mask == 7)


def test_an_archive_that_cannot_be_started_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["pacs", "--folder", str(tmp_path / "pacs")]) == FAILED
    assert "apt-get install" in capsys.readouterr().err


def test_samples_are_drawn_by_research(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "--out", str(tmp_path), "--draw", "--only", "ct_99"]) == 2
    assert "there is no sample volume ct_99" in capsys.readouterr().err
