import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import open_set
from ssmsam_research.protocols import check

SAMPLES = Path(__file__).resolve().parents[2] / "sample-datasets" / "abdomen"
ORGANS = (3, 5)  # right kidney and aorta


@pytest.fixture
def program(load_app):
    return load_app("benchmark")


@pytest.fixture
def few_slices(tmp_path):
    """Some slices and two organs of a sample volume: a minute less than the whole of it."""
    volume, labels = open_set(SAMPLES, only=["ct_01"]).cases[0].read()
    kept = np.argwhere(labels == ORGANS[0])[:, 0].min() + np.arange(6)
    for folder, array in (("abdomen", volume.array), ("abdomen_labels", np.where(np.isin(labels, ORGANS), labels, 0))):
        part = Volume(array[kept].astype(np.int16), volume.affine, volume.modality)
        write_volume(part, tmp_path / folder / "ct_01.nii.gz")
    return tmp_path / "abdomen"


def test_clicks_on_a_sample_volume_are_measured_recorded_drawn_and_not_measured_twice(
    program, random_small, few_slices, tmp_path, capsys, monkeypatch
):
    record, figures = tmp_path / "clicks.json", tmp_path / "figures"
    options = ["clicks", "--data", str(few_slices), "--threads", "1", "--json", str(record)]
    options += ["--weights", str(random_small.weights), "--allow-unverified"]
    assert program.main([*options, "--figures", str(figures)]) == 0
    result = json.loads(record.read_text())
    assert set(result["per_label"]) == {"right kidney", "aorta"}
    assert result["manifest"]["data"]["cases"] == ["ct_01"]
    assert {path.name for path in figures.iterdir()} == {"slice_curves.png", "volume_curves.png", "examples.png"}
    assert "mean over labels" in capsys.readouterr().out

    monkeypatch.setattr(
        "ssmsam_research.protocols.click_run.measure_case", lambda case, run: pytest.fail("measured again")
    )
    assert program.main(options) == 0
    assert json.loads(record.read_text())["tasks"] == result["tasks"]


def test_clicks_on_several_sets_stand_in_one_file(program, random_small, few_slices, tmp_path, capsys):
    shutil.copytree(few_slices, tmp_path / "others")
    shutil.copytree(few_slices.with_name("abdomen_labels"), tmp_path / "others_labels")
    record = tmp_path / "clicks.json"
    options = ["clicks", "--data", str(few_slices), str(tmp_path / "others"), "--methods", "small", "--threads", "1"]
    options += ["--weights", str(random_small.weights), "--allow-unverified", "--json", str(record)]
    assert program.main([*options, "--fractions", "0.5", "--no-volumes", "--figures", str(tmp_path / "figures")]) == 0
    result = json.loads(record.read_text())
    assert set(result["methods"]["small"]["sets"]) == {"abdomen", "others"} and result["n"] == 2
    assert set(result["per_label"]) == {"abdomen: right kidney", "abdomen: aorta", "others: label 3", "others: label 5"}
    assert result["methods"]["small"]["our_training"] == {"abdomen": "not recorded", "others": "not recorded"}
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["slice_curves.png"]
    assert "mean over sets: small" in capsys.readouterr().out
    assert program.main([*options, "--cases", "ct_99"]) == 2
    assert "no set of --data has a case ct_99" in capsys.readouterr().err
    assert program.main([*options, "--fractions", "7"]) == 2
    assert "places from 0 to 1" in capsys.readouterr().err


def test_annotated_slices_of_a_sample_volume_complete_it(program, few_slices, tmp_path, capsys):
    record, figures = tmp_path / "complete.json", tmp_path / "figures"
    options = ["complete", "--data", str(few_slices), "--slices", "2", "3", "--methods", "interpolation", "nearest"]
    assert program.main([*options, "--threads", "1", "--json", str(record), "--figures", str(figures)]) == 0
    result = json.loads(record.read_text())
    assert set(result["methods"]) == {"interpolation", "nearest"}
    assert set(result["per_label"]) == {"right kidney", "aorta"}
    assert "complete_ends_given_other_slices.png" in {path.name for path in figures.iterdir()}
    assert "ends given, 3 slices: other slices" in capsys.readouterr().out
    assert program.main(["compare", str(record), "--method", "interpolation", "--over", "nearest"]) == 0
    said = capsys.readouterr().out
    assert "ends given, 3 slices, other slices" in said and "mean over labels" in said and "n 1" in said
    assert program.main(["compare", str(record), "--method", "fewshot", "--over", "nearest"]) == 2
    assert "it has interpolation, nearest" in capsys.readouterr().err


def test_a_patient_is_segmented_from_another_one(program, random_small, few_slices, tmp_path):
    shutil.copytree(few_slices, tmp_path / "others")
    shutil.copytree(few_slices.with_name("abdomen_labels"), tmp_path / "others_labels")
    record = tmp_path / "crosspatient.json"
    options = ["crosspatient", "--query-data", str(few_slices), "--support-data", str(tmp_path / "others")]
    options += ["--labels", "right kidney=3", "aorta=5", "--slices", "1", "--methods", "prototypes", "--threads", "1"]
    options += ["--weights", str(random_small.weights), "--allow-unverified", "--json", str(record)]
    assert program.main(options) == 0
    result = json.loads(record.read_text())
    assert result["manifest"]["data"]["supports"]["set"] == "others"
    assert set(result["methods"]["prototypes"]) == {"known extent", "whole volume, 1 slice"}
    assert set(result["per_label"]) == {"right kidney", "aorta"}


def test_wrong_methods_say_what_is_right(program, few_slices, capsys):
    assert program.main(["crosspatient", "--data", str(few_slices), "--methods", "nearest"]) == 2
    said = capsys.readouterr().err
    assert "it can measure prototypes, " in said and "linear" in said and "propagation" not in said
    assert program.main(["crosspatient"]) == 2
    assert "--query-data and --support-data" in capsys.readouterr().err
    assert program.main(["complete", "--data", str(few_slices), "--slices", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_wrong_arguments_say_what_is_right(program, random_small, tmp_path, capsys):
    weights = ["--weights", str(random_small.weights), "--allow-unverified"]
    assert program.main(["clicks", "--data", str(SAMPLES), "--cases", "ct_99", *weights]) == 2
    assert "it has ct_01" in capsys.readouterr().err
    assert program.main(["clicks", "--data", str(SAMPLES), "--labels", "liver", *weights]) == 2
    assert "NAME=NUMBER" in capsys.readouterr().err
    assert program.main(["clicks", "--data", str(SAMPLES), "--validation", *weights]) == 2
    assert "name them with --cases" in capsys.readouterr().err


@pytest.mark.slow
def test_speed_is_recorded_with_a_ratio(program, random_small, tmp_path):
    record = tmp_path / "speed.json"
    options = ["speed", "--data", str(SAMPLES), "--rounds", "3", "--threads", "1", "--no-server", "--json", str(record)]
    assert program.main([*options, "--weights", str(random_small.weights), "--allow-unverified"]) == 0
    small = json.loads(record.read_text())["encoders"]["small"]
    assert small["ratio"] > 0
    assert small["seconds"]["later_click"]["n"] == 3


def test_a_check_passes_as_recorded_and_fails_when_a_figure_got_worse(
    program, random_small, few_slices, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(check, "METHODS", ("interpolation", "fewshot_prompted"))  # gradient steps take half a minute
    monkeypatch.setattr(check, "SPEED", replace(check.SPEED, rounds=2))
    expected = tmp_path / "check.json"
    expected.write_text(json.dumps({"cases": ["ct_01"], "organs": ["aorta"]}))
    options = ["check", "--data", str(few_slices), "--threads", "1", "--expected", str(expected)]
    options += ["--weights", str(random_small.weights), "--allow-unverified"]
    assert program.main(options) == 2
    assert "record it with --record" in capsys.readouterr().err
    assert program.main([*options, "--record"]) == 0
    recorded = json.loads(expected.read_text())
    for name, one in recorded["expected"].items():
        one["tolerance"] = (
            1e3 if name.startswith("speed") else 0.01
        )  # how fast a shared machine is does not matter here
    better = next(name for name in recorded["expected"] if name.endswith("interpolation, Dice"))
    recorded["expected"][better]["recorded"] += 1.0
    expected.write_text(json.dumps(recorded))
    capsys.readouterr()
    assert program.main(options) == 1
    rows = {row.rsplit("  ", 1)[-1]: row for row in capsys.readouterr().out.splitlines()[1:]}
    assert rows.keys() == {"WORSE", "ok"} and better in rows["WORSE"]
