import json

import numpy as np
import pytest

from ssmsam.progress import Cancelled
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import open_set
from ssmsam_research.model_choice import PromptedModel
from ssmsam_research.protocols import click_run
from ssmsam_research.protocols.click_run import ClickRun
from ssmsam_research.protocols.clicks import ClickProtocol

PROTOCOL = ClickProtocol(slice_clicks=(1, 3, 5), volume_clicks=(1,), slice_fractions=(0.5,))


@pytest.fixture(scope="module")
def run(tmp_path_factory, random_small):
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        labels = np.zeros((3, 32, 32), dtype=np.uint8)
        labels[:, 8:20, 10:24] = 1
        labels[1:, 24:30, 3:9] = 4
        image = labels * 60.0 + rng.normal(0, 5, labels.shape)
        for kind, array in (("images", image.astype(np.float32)), ("labels", labels)):
            (folder / kind).mkdir(exist_ok=True)
            write_volume(Volume(array, np.diag([1.5, 1.5, 4.0, 1.0])), folder / kind / f"{name}.nii.gz")
    sha256 = PromptedModel.load(random_small).weights_sha256
    labelled_set = open_set(folder, label_names={1: "block"})
    return ClickRun(labelled_set=labelled_set, model=random_small, weights_sha256=sha256, protocol=PROTOCOL)


@pytest.fixture(scope="module")
def result(run):
    return run.run()


def test_the_result_has_the_shape_that_all_results_share(result, run):
    json.dumps(result)  # nothing that JSON cannot hold
    assert result["protocol"] == "clicks"
    assert result["weights_sha256"] == run.weights_sha256
    assert set(result["per_label"]) == {"block", "label 4"}
    assert result["per_label"]["block"]["n"] == 3
    assert result["mean_dice"] == result["tasks"]["slice"]["5 clicks"]["mean_dice"]
    assert 0 < result["mean_iou"] < result["mean_dice"] <= 100
    assert set(result["iou_per_label"]) == set(result["per_label"])
    assert set(result["tasks"]["volume"]) == {"1 click", "box"}
    assert result["seconds"]["embed_slice"] > 0
    assert result["manifest"]["data"]["cases"] == ["a", "b", "c"]


def test_the_mean_is_over_labels_then_cases_then_slices(result):
    scores = {}
    for case in result["per_case"]:
        for record in case["records"]:
            if record["task"] == "slice":
                scores.setdefault(record["label"], {}).setdefault(case["case"], []).append(record["dice"]["5 clicks"])
    by_label = [np.mean([np.mean(slices) for slices in cases.values()]) for cases in scores.values()]
    assert result["mean_dice"] == pytest.approx(np.mean(by_label), abs=0.01)


def test_a_stopped_run_goes_on_where_it_was(run, result, tmp_path, monkeypatch):
    def stop_after_two(phase, done, total):
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run.run(tmp_path / "run.jsonl", progress=stop_after_two)
    measured = []
    measure = click_run.measure_case
    monkeypatch.setattr(click_run, "measure_case", lambda case, run: measured.append(case.name) or measure(case, run))
    resumed = run.run(tmp_path / "run.jsonl")
    assert measured == ["c"]
    assert resumed["tasks"] == result["tasks"]
    assert [case["case"] for case in resumed["per_case"]] == ["a", "b", "c"]


def test_another_protocol_or_other_weights_are_another_run(run):
    other = ClickRun(run.labelled_set, run.model, run.weights_sha256, ClickProtocol(slice_clicks=(1,)))
    assert other.key != run.key
    assert ClickRun(run.labelled_set, run.model, "0" * 64, PROTOCOL).key != run.key
    assert ClickRun(run.labelled_set, run.model, run.weights_sha256, PROTOCOL, jobs=4, threads=3).key == run.key


def test_several_processes_give_the_same_numbers(run, result):
    parallel = ClickRun(run.labelled_set, run.model, run.weights_sha256, PROTOCOL, jobs=2).run()
    assert parallel["tasks"] == result["tasks"]
