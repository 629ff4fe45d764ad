import json
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from ssmsam.progress import Cancelled
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.figures.fewshot_examples import as_viewed, draw_examples, examples
from ssmsam_research.labelled_sets import open_set
from ssmsam_research.methods.registry import checked_methods
from ssmsam_research.model_choice import ModelChoice, PromptedModel
from ssmsam_research.protocols import fewshot_run
from ssmsam_research.protocols.complete import CompleteProtocol
from ssmsam_research.protocols.crosspatient import CrossPatientProtocol, SupportPool
from ssmsam_research.protocols.fewshot_run import FewShotRun, draw_fewshot, fewshot_curves, fewshot_result


@pytest.fixture(scope="module")
def labelled_set(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for number, name in enumerate("abc"):
        labels = np.zeros((12, 24, 24), dtype=np.uint8)
        for index in range(2, 10):
            labels[index, 4 : 12 + (index + number) % 4, 4:14] = 1
        if name == "c":
            labels[3:6, 18:22, 18:22] = 2
        image = (labels * 60.0 + rng.normal(0, 5, labels.shape)).astype(np.float32)
        for kind, array in (("images", image), ("labels", labels)):
            (folder / kind).mkdir(exist_ok=True)
            write_volume(Volume(array, np.diag([1.0, 1.0, 4.0, 1.0])), folder / kind / f"{name}.nii.gz")
    return open_set(folder, label_names={1: "block", 2: "rare"})


@pytest.fixture(scope="module")
def run(labelled_set):
    protocol = CompleteProtocol(slices=(2, 3))
    return FewShotRun(protocol, labelled_set, ("interpolation", "nearest"), ModelChoice(), surfaces=True)


@pytest.fixture(scope="module")
def result(run):
    return run.run()


def test_the_result_has_the_shape_that_all_results_share(result):
    json.dumps(result)
    assert result["protocol"] == "complete" and result["weights_sha256"] is None
    assert set(result["per_label"]) == {"block", "rare"}
    assert result["per_label"]["block"]["n"] == 3 and result["per_label"]["rare"]["n"] == 1
    headline = result["methods"]["interpolation"]["ends given, 3 slices"]
    assert result["mean_dice"] == headline["mean_dice"] == headline["scores"]["other slices"]["mean_dice"]
    assert headline["surface"]["assd_mm"]["mean"] < headline["surface"]["hd95_mm"]["mean"] < 10
    assert headline["nothing_left"] == 1  # the rare label is on three slices only
    assert result["manifest"]["data"]["queries"]["cases"] == ["a", "b", "c"]


def test_the_mean_is_over_labels_then_cases(result):
    scores = {}
    for case in result["per_case"]:
        for record in case["methods"]["nearest"]:
            if record["setting"] == "ends unknown, 2 slices":
                scores.setdefault(record["label"], []).append(record["dice"]["other slices"])
    expected = np.mean([np.mean(cases) for cases in scores.values()])
    assert result["methods"]["nearest"]["ends unknown, 2 slices"]["mean_dice"] == pytest.approx(expected, abs=0.01)


def test_a_stopped_run_goes_on_and_a_new_method_is_measured_alone(run, result, tmp_path, monkeypatch):
    def stop_after_one(phase, done, total):
        if done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        run.run(tmp_path / "log", progress=stop_after_one)
    measured, measure = [], fewshot_run.measure_case
    spy = lambda case, methods, run: measured.append((case.name, methods)) or measure(case, methods, run)  # noqa: E731
    monkeypatch.setattr(fewshot_run, "measure_case", spy)
    resumed = run.run(tmp_path / "log")
    assert [name for name, _ in measured] == ["b", "c"]
    assert without_seconds(resumed["methods"]) == without_seconds(result["methods"])

    measured.clear()
    more = replace(run, methods=("interpolation", "interpolation_beyond"))
    more.run(tmp_path / "log")
    assert measured == [(name, ["interpolation_beyond"]) for name in "abc"]


def without_seconds(found):
    if isinstance(found, dict):
        return {key: without_seconds(inner) for key, inner in found.items() if key != "seconds"}
    return found


def test_other_settings_are_another_run(run, labelled_set):
    assert replace(run, protocol=CompleteProtocol(slices=(2,))).key != run.key
    assert replace(run, weights_sha256="0" * 64).key != run.key
    assert replace(run, surfaces=False).key != run.key
    assert replace(run, jobs=3, threads=2).key == run.key


def test_across_patients_a_label_without_supports_is_told_not_dropped(labelled_set, random_small):
    sha256 = PromptedModel.load(random_small).weights_sha256
    crossing = FewShotRun(
        CrossPatientProtocol(supports=2, slices=(1,)),
        labelled_set, ("prototypes",), random_small, sha256, SupportPool.open(labelled_set),
    )  # fmt: skip
    result = crossing.run()
    assert result["labels_not_run"] == {"c": ["rare"]}
    records = [record for case in result["per_case"] for record in case["methods"]["prototypes"]]
    assert len(records) == 3 * 2 * 2  # cases, groups of supports, settings
    assert all(case["case"] not in r["supports"] for case in result["per_case"] for r in case["methods"]["prototypes"])
    assert result["manifest"]["data"]["supports"]["cases"] == ["a", "b", "c"]
    assert result["per_label"]["block"]["n"] == 3


def test_no_label_with_enough_supports_says_what_to_do(labelled_set):
    protocol, pool = CrossPatientProtocol(shots=5), SupportPool.open(labelled_set)
    run = FewShotRun(protocol, labelled_set, ("prototypes",), ModelChoice(), pool=pool)
    measured = {"prototypes": {case.name: {"records": [], "labels_not_run": ["block"]} for case in labelled_set.cases}}
    with pytest.raises(ValueError, match="lower --shots"):
        fewshot_result(run, measured)


def test_curves_have_a_line_for_each_method_and_examples_a_picture(run, result, tmp_path):
    curves = fewshot_curves(result)
    assert set(curves) == {"ends given", "ends unknown"}
    assert set(curves["ends given"]["nearest"]) == {2, 3}
    drawn = draw_fewshot(tmp_path, result, "set")
    drawn += draw_examples(tmp_path, result, run.queries)
    assert len(drawn) == 7
    assert all(matplotlib.image.imread(path).std() > 0.01 for path in drawn)


def test_methods_that_need_slices_of_the_query_cannot_cross_patients():
    assert checked_methods(["nearest", "linear", "nearest"], "complete") == ("nearest", "linear")
    assert {"prototypes", "fewshot", "linear"} <= set(checked_methods(None, "crosspatient"))
    assert "interpolation" not in checked_methods(None, "crosspatient")
    assert "fewshot_100" not in checked_methods(None, "complete")  # only where it is asked for
    assert checked_methods(["fewshot_100", "ssm_judged"], "complete") == ("fewshot_100", "ssm_judged")
    with pytest.raises(ValueError, match="it can measure prototypes, "):
        checked_methods(["nearest"], "crosspatient")


def test_the_mean_iou_is_the_mean_of_each_record_s_iou(result):
    by_label = {}
    for case in result["per_case"]:
        for record in case["methods"]["interpolation"]:
            if record["setting"] == "ends given, 3 slices":
                dice = record["dice"]["other slices"] / 100
                by_label.setdefault(record["label"], []).append(100 * dice / (2 - dice))
    found = result["methods"]["interpolation"]["ends given, 3 slices"]
    assert (
        found["mean_iou"]
        == result["mean_iou"]
        == pytest.approx(np.mean([np.mean(v) for v in by_label.values()]), abs=0.01)
    )
    summary = found["iou_per_label"]["block"]
    assert summary["mean"] == pytest.approx(np.mean(by_label["block"]), abs=0.01) and summary["n"] == 3
    assert summary["ci95"][0] <= summary["mean"] <= summary["ci95"][1]


def test_examples_are_the_best_the_median_and_the_worst_of_each_organ(run, result, tmp_path):
    setting = "ends given, 3 slices"
    chosen = [(place, record) for place, record in examples(result, "nearest", setting) if record["label"] == "block"]
    scores = sorted(
        record["dice"]["other slices"]
        for case in result["per_case"]
        for record in case["methods"]["nearest"]
        if record["setting"] == setting and record["label"] == "block"
    )
    assert [place for place, _ in chosen] == ["best", "median", "worst"]
    assert [record["dice"]["other slices"] for _, record in chosen] == [scores[2], scores[1], scores[0]]
    assert all(record["kept"]["slice"] not in record["annotated"] for _, record in chosen)


def test_records_without_a_kept_slice_get_no_examples(run, result, tmp_path):
    older = json.loads(json.dumps(result))
    for case in older["per_case"]:
        for record in case["methods"]["nearest"]:
            record.pop("kept", None)
    assert [path.name for path in draw_examples(tmp_path, older, run.queries)] == [
        "complete_examples_interpolation.png"
    ]
    with pytest.raises(ValueError, match="has no case"):
        draw_examples(tmp_path, result, replace(run.queries, cases=run.queries.cases[:1]))


@pytest.mark.parametrize("along", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_examples_are_drawn_as_viewers_show_them_however_they_were_stored(along):
    """In LPS the patient's right is at low x and the front at low y."""
    x, y = along
    stored = np.zeros((1, 4, 4), dtype=np.float32)
    stored[0, 0 if y > 0 else 3, 0 if x > 0 else 3] = 1  # the corner at the right and the front of the patient
    volume = Volume(stored, np.diag([2.0 * x, 2.0 * y, 5.0, 1.0]))
    assert volume.array[0][as_viewed(volume)][0, 0] == 1
