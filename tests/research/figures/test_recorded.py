"""Figures from results as they are recorded."""

import json

import matplotlib.image
import pytest

from ssmsam_research.figures.curves import draw_reliability, draw_seconds
from ssmsam_research.figures.recorded import draw_recorded, read_result
from ssmsam_research.protocols.fewshot_run import seconds_curves

SETTING = "ends given, 5 slices"


def fewshot(dice_and_seconds: dict[str, tuple[float, float]], settings: dict[str, dict]) -> dict:
    """A result of "complete" as it was recorded before there was an IoU in it."""
    methods = {
        name: {SETTING: {"mean_dice": dice, "k": 5, "seconds": s, "scores": {"other slices": {"mean_dice": dice}}}}
        for name, (dice, s) in dice_and_seconds.items()
    }
    return {
        "protocol": "complete",
        "settings": {"headline": f"nearest / {SETTING}", "methods": settings},
        "methods": methods,
        "per_case": [],
        "manifest": {"data": {"queries": {"set": "abdomen"}}},
    }


ADAPTED = fewshot(
    {"nearest": (60, 0.02), "fewshot": (93, 14), "fewshot_prompted": (91, 3), "fewshot_matched": (80, 3)},
    {
        "nearest": {"beyond": 0.5},
        "fewshot": {"steps": 30},
        "fewshot_prompted": {"steps": 0},
        "fewshot_matched": {"steps": 0, "matched": True},
    },
)


def test_methods_that_differ_in_steps_alone_make_one_line_from_quick_to_slow():
    assert seconds_curves(ADAPTED) == {
        "nearest": [(0.02, 60)],
        "fewshot": [(3, 91), (14, 93)],
        "fewshot_matched": [(3, 80)],
    }


def test_a_recorded_few_shot_result_is_drawn_without_its_data(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(ADAPTED))
    drawn = draw_recorded(tmp_path / "figures", read_result(tmp_path / "result.json"))
    assert [path.name for path in drawn] == ["complete_seconds.png"]  # one number of slices makes no curve
    assert ink(drawn[0]) > 0.01


def test_a_recorded_active_result_shows_its_reliability(tmp_path):
    curve = {"random": {"1": {"mean_dice": 40.0}, "2": {"mean_dice": 60.0}}}
    result = {
        "protocol": "active",
        "curves": {"other slices": curve, "whole volume": curve},
        "reliability": {"volume_dice": {"bias": 1.0}, "presence": {"bins": [[80, 0.1, 0.2], [20, 0.9, 0.8]]}},
        "manifest": {"data": {"set": "abdomen"}},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    names = [path.name for path in draw_recorded(tmp_path, read_result(tmp_path / "result.json"))]
    assert names[-1] == "active_reliability.png" and len(names) == 3


def test_a_full_bin_is_drawn_larger_than_a_nearly_empty_one(tmp_path):
    few = draw_reliability(tmp_path / "few.png", {"presence": [[1, 0.2, 0.5], [1000, 5.0, 5.0]]}, title="")
    many = draw_reliability(tmp_path / "many.png", {"presence": [[1000, 0.2, 0.5], [1, 5.0, 5.0]]}, title="")
    assert ink(many) > ink(few)


def test_seconds_that_were_rounded_to_zero_have_a_place_on_a_logarithmic_axis(tmp_path):
    path = draw_seconds(tmp_path / "seconds.png", {"a": [(0.0, 50.0)], "b": [(100.0, 60.0), (1000.0, 70.0)]}, title="")
    assert ink(path) > 0.01
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_seconds(tmp_path / "none.png", {}, title="")


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="not a result"):
        read_result(tmp_path / "other.json")
    (tmp_path / "speed.json").write_text('{"protocol": "speed"}')
    with pytest.raises(ValueError, match="there are figures of clicks"):
        read_result(tmp_path / "speed.json")


def ink(path) -> float:
    """The share of pixels that are not white."""
    return float((matplotlib.image.imread(path)[..., :3].min(axis=2) < 0.9).mean())
