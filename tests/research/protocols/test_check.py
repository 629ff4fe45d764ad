"""The guard against worse figures: its verdicts, its table, its file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ssmsam_research.protocols.check import SPEED_RATIO, CheckFile, Expectation, check_table, passes, verdicts

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = {"complete, Dice": Expectation(90.0, 1.0), SPEED_RATIO: Expectation(3.5, 1.0)}


def test_a_figure_within_its_tolerance_passes_and_a_better_one_too():
    found = verdicts(EXPECTED, {"complete, Dice": 89.1, SPEED_RATIO: 7.0})
    assert found == {"complete, Dice": "ok", SPEED_RATIO: "better"}
    assert passes(found)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ({"complete, Dice": 88.9, SPEED_RATIO: 3.5}, "WORSE"),
        ({SPEED_RATIO: 3.5}, "MISSING"),
        ({"complete, Dice": 90.0, SPEED_RATIO: 3.5, "never recorded": 1.0}, "NEW"),
        ({"complete, Dice": float("nan"), SPEED_RATIO: 3.5}, "WORSE"),
    ],
)
def test_worse_missing_and_unrecorded_figures_fail_and_are_shown(measured, verdict):
    assert not passes(verdicts(EXPECTED, measured))
    rows = check_table(EXPECTED, measured).splitlines()
    assert [row.split()[-1] for row in rows[1:]].count(verdict) == 1


def test_recording_keeps_the_tolerances_that_were_set(tmp_path):
    path = tmp_path / "check.json"
    path.write_text(json.dumps({"cases": ["a"], "organs": ["liver"]}))
    fresh = CheckFile.read(path)
    assert fresh.expected == {} and fresh.cases == ("a",)
    kept = replace(fresh, expected={"clicks, Dice": Expectation(50.0, 0.25)}, data_sha256="0")
    kept.write(path, {})
    assert CheckFile.read(path) == kept


def test_a_file_of_another_shape_says_what_to_do(tmp_path):
    path = tmp_path / "check.json"
    with pytest.raises(ValueError, match="--record"):
        CheckFile.read(path)
    path.write_text('{"cases": 3}')
    with pytest.raises(ValueError, match="is no check file"):
        CheckFile.read(path)


def test_the_recorded_file_expects_figures_of_all_three_kinds():
    file = CheckFile.read(ROOT / "benchmarks" / "check.json")
    assert {"complete", "clicks on a slice", "speed"} == {name.split(",")[0] for name in file.expected}
    assert all(0 < one.tolerance < one.recorded / 2 for one in file.expected.values())
