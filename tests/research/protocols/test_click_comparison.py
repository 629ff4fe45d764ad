import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ssmsam.models.weights import PACKAGED, manifest
from ssmsam.progress import Cancelled
from ssmsam.report import bootstrap_ci
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.figures.recorded import draw_recorded
from ssmsam_research.labelled_sets import open_set
from ssmsam_research.protocols import click_run
from ssmsam_research.protocols.click_comparison import (
    METHODS,
    ClickComparison,
    ClickMethod,
    TrainingRecord,
    comparison_table,
    over_sets,
)
from ssmsam_research.protocols.clicks import ClickProtocol

RECORD = Path(__file__).resolve().parents[3] / "benchmarks" / "trained_on.json"
PROTOCOL = ClickProtocol(slice_clicks=(1, 2), slice_fractions=(0.5,), volumes=False)
TWO = {"ours": ClickMethod("small"), "theirs": ClickMethod("small", published=True, pretraining="may have seen them")}


def _set(folder, cases):
    rng = np.random.default_rng(0)
    for name in cases:
        labels = np.zeros((1, 24, 24), dtype=np.uint8)
        labels[:, 4:14, 6:18] = 1
        labels[:, 20, 20] = 2  # a target of one pixel
        for kind, array in (("images", labels * 60.0 + rng.normal(0, 5, labels.shape)), ("labels", labels)):
            write_volume(Volume(array.astype(np.float32), np.eye(4)), folder / kind / f"{name}.nii.gz")
    return open_set(folder, label_names={1: "block", 2: "dot"})


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return _set(folder / "one", "ab"), _set(folder / "two", "c")


@pytest.fixture
def run(sets, random_small):
    digest = random_small.digests()["small"]
    training = TrainingRecord({digest: ["two"]})
    return ClickComparison(sets, TWO, random_small, PROTOCOL, training, held_out={"two": ("c",)})


def test_all_methods_and_sets_stand_in_one_result(run, tmp_path):
    result = run.run()
    json.dumps(result)
    ours, theirs = result["methods"]["ours"], result["methods"]["theirs"]
    assert set(ours["over_sets"]["slice"]) == {"1 click", "2 clicks", "box"}
    assert set(theirs["over_sets"]["slice"]) == {"box"} and "not trained for clicks" in theirs["prompts"]
    assert ours["our_training"] == {"one": "unseen", "two": "other cases seen"}
    assert theirs["pretraining"] == "may have seen them" and not ours["pretraining"]
    of_sets = [ours["sets"][name]["tasks"]["slice"]["2 clicks"]["mean_dice"] for name in ("one", "two")]
    assert (
        result["mean_dice"]
        == ours["over_sets"]["slice"]["2 clicks"]["mean"]
        == pytest.approx(np.mean(of_sets), abs=0.01)
    )
    assert result["ci95"] == pytest.approx(bootstrap_ci(of_sets), abs=0.01) and result["n"] == 2
    assert set(result["per_label"]) == {"one: block", "one: dot", "two: block", "two: dot"}
    assert result["per_label"]["one: dot"]["n"] == 2 and len(result["per_label"]["one: dot"]["ci95"]) == 2
    assert [(c["set"], c["method"], c["case"]) for c in result["per_case"]][:3] == [
        ("one", "ours", "a"), ("one", "ours", "b"), ("one", "theirs", "a"),
    ]  # fmt: skip
    assert [one["set"] for one in result["manifest"]["data"]["sets"]] == ["one", "two"]
    assert [path.name for path in draw_recorded(tmp_path, result)] == ["slice_curves.png"]
    said = comparison_table(result)
    assert "two: ours (other cases seen)" in said and "one: theirs (pretraining may have seen)" in said
    assert "mean over sets: theirs" in said and "may have seen them" in said


def test_a_stopped_comparison_goes_on_where_it_was(run, tmp_path, monkeypatch):
    def stop(phase, done, total):
        assert total == 6
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run.run(tmp_path / "log", progress=stop)
    assert len((tmp_path / "log").read_text().splitlines()) == 3
    measure, measured = click_run.measure_case, []
    monkeypatch.setattr(
        click_run,
        "measure_case",
        lambda case, one: measured.append((case.name, one.model.published)) or measure(case, one),
    )
    run.run(tmp_path / "log")
    assert measured == [("b", True), ("c", False), ("c", True)]


def test_of_one_set_the_interval_is_over_cases():
    cell = {"mean_dice": 50.0, "ci95": [40.0, 60.0], "n": 7}
    assert over_sets({"one": {"slice": {"box": cell}}}) == {
        "slice": {"box": {"mean": 50.0, "ci95": [40.0, 60.0], "n": 7, "over": "cases"}}
    }


def test_what_training_saw_is_said_of_these_very_weights(sets, tmp_path):
    record = TrainingRecord({"s": ["one"]})
    assert record.of(["s"], sets[0], ()) == "seen"
    assert record.of(["s"], sets[1], ()) == "unseen"
    assert record.of(["s", "other weights"], sets[0], ()) == "not recorded"
    assert record.of([], sets[0], ()) == "unseen"
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(ValueError, match="expected"):
        TrainingRecord.read(tmp_path / "wrong.json")


@pytest.mark.parametrize("name", ["small", "medsam_lite_decoder"])
def test_the_shipped_weights_are_recorded(name):
    digest = hashlib.sha256((PACKAGED / manifest()[name].file).read_bytes()).hexdigest()
    assert digest in TrainingRecord.read(RECORD).sets


def test_the_published_decoder_is_asked_for_boxes_only():
    protocols = {name: method.protocol(ClickProtocol()) for name, method in METHODS.items()}
    assert {name for name, protocol in protocols.items() if not protocol.clicks} == {"medsam_lite published"}
