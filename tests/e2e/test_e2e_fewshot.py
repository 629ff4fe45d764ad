"""Annotate a few slices over REST, run the automatic model, and carry what it learned elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, LABELS, MR, Truth, copy_of, dice, thin_copy_of
from serving import Server
from viewers import TIMEOUT, ohif, refused, slicer

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

COMPLETED = 0.80
"""Dice of organs on the slices between four annotated ones, of a patient that no weights were trained on."""
ELSEWHERE = 0.5
"""The same in another patient that has no annotated slice, over the whole volume."""
NEW_NAME = "Milz (groß)"
EARLIER_NAME = "Leber"
"""By the alphabet, before :data:`NEW_NAME`."""
ORGANS = ("liver", "right kidney")
OTHER, STEP = "ct_02", 3
"""Another patient, of whom every third slice is there."""


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("few-shot-studies")
    for name in (CT, MR):
        copy_of(name, folder)
    thin_copy_of(OTHER, folder, step=STEP)
    running = Server(studies=folder, home=tmp_path_factory.mktemp("few-shot-home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def annotated(learner: Server, ct: Truth, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Four slices of two organs of the CT, submitted; label -> slices."""
    slices = {organ: evenly(ct, organ, 4) for organ in ORGANS}
    submit(learner.url, CT, ct, slices, tmp_path_factory.mktemp("masks"))
    return slices


def evenly(truth: Truth, organ: str, count: int) -> list[int]:
    found = np.flatnonzero((truth.array == LABELS[organ]).any(axis=(1, 2)))
    return [int(found[round(share * (len(found) - 1))]) for share in np.linspace(0, 1, count)]


def submit(
    url: str,
    image: str,
    truth: Truth,
    slices: Mapping[str, list[int]],
    folder: Path,
    *,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Annotate organs on slices, under other ``names`` where given."""
    drawn = np.zeros(truth.array.shape, dtype=np.uint8)
    for value, (organ, indices) in enumerate(slices.items(), 1):
        for index in indices:
            drawn[index][truth.array[index] == LABELS[organ]] = value
    path = folder / f"{image}.nii.gz"
    write_volume(Volume(drawn, truth.grid.affine), path)
    called = {organ: (names or {}).get(organ, organ) for organ in slices}
    said = {
        "label_info": [{"name": called[organ], "idx": value} for value, organ in enumerate(slices, 1)],
        "client_id": "reader",
        "partial": {"slices": {called[organ]: {"annotated": indices} for organ, indices in slices.items()}},
    }
    with path.open("rb") as file:
        answer = requests.put(
            f"{url}/datastore/label",
            params={"image": image, "tag": "partial"},
            files={"label": (path.name, file)},
            data={"params": json.dumps(said)},
            timeout=TIMEOUT,
        )
    assert answer.status_code == 200, answer.text
    return answer.json()


def other_slices(truth: Truth, organ: str, annotated: list[int]) -> np.ndarray:
    """Slices of the organ that were not annotated."""
    found = np.flatnonzero((truth.array == LABELS[organ]).any(axis=(1, 2)))
    return np.setdiff1d(found, annotated)


def test_without_annotations_the_answer_says_what_to_do(start: Callable[..., Server], tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    copy_of(CT, studies)
    server = start(studies=studies).wait_until_it_answers()
    status, detail = refused(server.url, "fewshot", CT)
    assert status == 422
    assert "annotate" in detail
    assert "accept_slice" in detail


def test_the_rest_of_the_volume_follows_from_a_few_slices(
    learner: Server, annotated: dict[str, list[int]], ct: Truth
) -> None:
    answer = slicer(learner.url, "fewshot", CT, adapt=False)
    assert answer.params["label_names"] == {"liver": 1, "right kidney": 2}
    assert answer.params["learned_from"] == {"liver": 4, "right kidney": 4}
    assert set(answer.params["expected_dice"]) == {"liver", "right kidney"}
    assert all(0.5 < value <= 1 for value in answer.params["expected_dice"].values())
    assert answer.params["job"] is None, "gradient steps are for who asks for them"
    for organ, value in answer.params["label_names"].items():
        rest = other_slices(ct, organ, annotated[organ])
        assert dice(answer.mask[rest] == value, ct.array[rest] == LABELS[organ]) > COMPLETED
        for index in annotated[organ]:
            found, drawn = answer.mask[index] == value, ct.array[index] == LABELS[organ]
            others = (answer.mask[index] > 0) & ~found
            assert not (drawn & ~found & ~others).any(), "an annotated slice lost pixels"
            assert not (found & ~drawn).any(), "an annotated slice gained pixels"


def test_the_adaptation_runs_beside_and_can_be_watched_and_stopped(
    learner: Server, annotated: dict[str, list[int]]
) -> None:
    url = learner.url
    answer = slicer(url, "fewshot", CT, client_id="reader", adapt=True).params
    assert answer["adapted_now"] is False
    job = requests.get(f"{url}/jobs/{answer['job']}", timeout=TIMEOUT).json()
    assert (job["kind"], job["owner"], job["image"]) == ("adapt", "reader", CT)
    assert answer["job"] in [one["id"] for one in requests.get(f"{url}/jobs", timeout=TIMEOUT).json()["jobs"]]
    assert requests.delete(f"{url}/jobs/{answer['job']}", timeout=TIMEOUT).status_code == 200
    end = time.monotonic() + 60
    while (job := requests.get(f"{url}/jobs/{answer['job']}", timeout=TIMEOUT).json())["state"] != "cancelled":
        assert time.monotonic() < end, job
        time.sleep(0.1)
    for method in (requests.get, requests.delete):
        unknown = method(f"{url}/jobs/none", timeout=TIMEOUT)
        assert unknown.status_code == 404
        assert "GET /jobs" in unknown.json()["detail"]
    assert requests.delete(f"{url}/heads/adaptation", timeout=TIMEOUT).json() == {"cancelled": False}


def test_nothing_is_learned_twice_and_the_answer_is_the_same(learner: Server, annotated: dict[str, list[int]]) -> None:
    first = slicer(learner.url, "fewshot", CT, wait=True)
    again = slicer(learner.url, "fewshot", CT)
    assert again.params["adapted_now"] is False
    assert again.params["answered_before"] is True
    assert again.params["latencies"]["total"] < 1
    assert again.params["head"] == first.params["head"]
    assert again.params["encoded_slices"] == first.params["encoded_slices"], "a slice was encoded twice"
    np.testing.assert_array_equal(first.mask, again.mask)


def test_another_patient_is_segmented_too(learner: Server, annotated: dict[str, list[int]]) -> None:
    liver = Truth.of(OTHER).mask("liver")[::STEP]
    answer = slicer(learner.url, "fewshot", OTHER)
    value = answer.params["label_names"]["liver"]
    assert dice(answer.mask == value, liver) > ELSEWHERE


def test_ohif_gets_the_values_that_info_announced(learner: Server, annotated: dict[str, list[int]]) -> None:
    announced = learner.info()["models"]["fewshot"]["labels"]
    assert list(announced.values()) == list(range(1, len(announced) + 1))
    answer = ohif(learner.url, "fewshot", CT)
    assert set(np.unique(answer.mask)) == {0, announced["liver"], announced["right kidney"]}


def test_a_label_with_a_new_name_is_learned_while_the_server_runs(
    learner: Server, annotated: dict[str, list[int]], tmp_path: Path
) -> None:
    truth = Truth.of(MR)
    drawn = evenly(truth, "spleen", 3)
    submit(learner.url, MR, truth, {"spleen": drawn}, tmp_path, names={"spleen": NEW_NAME})
    answer = slicer(learner.url, "fewshot", MR, labels=NEW_NAME, only_this_image=True)
    assert answer.params["label_names"] == {NEW_NAME: 1}
    assert NEW_NAME in learner.info()["models"]["fewshot"]["labels"]
    rest = other_slices(truth, "spleen", drawn)
    assert dice(answer.mask[rest] == 1, truth.array[rest] == LABELS["spleen"]) > COMPLETED
    announced = learner.info()["models"]["fewshot"]["labels"]
    submit(learner.url, MR, truth, {"liver": evenly(truth, "liver", 3)}, tmp_path, names={"liver": EARLIER_NAME})
    now = learner.info()["models"]["fewshot"]["labels"]
    assert EARLIER_NAME in now
    assert {name: now[name] for name in announced} == announced, "a viewer that asked earlier reads the same values"
    requests.delete(f"{learner.url}/datastore/annotations", params={"image": MR}, timeout=TIMEOUT).raise_for_status()


def test_a_click_mends_the_proposal_of_its_slice(learner: Server, annotated: dict[str, list[int]], ct: Truth) -> None:
    plain = slicer(learner.url, "fewshot", CT, labels="right kidney")
    organ = ct.array == LABELS["right kidney"]
    index = int(other_slices(ct, "right kidney", annotated["right kidney"])[2])
    y, x = np.argwhere(plain.mask[index] == 1)[0]
    mended = slicer(
        learner.url, "fewshot", CT, labels="right kidney", label="right kidney", background=[[int(x), int(y), index]]
    )
    assert (mended.mask[index] != plain.mask[index]).any(), "a correction always changes the slice it is on"
    assert not mended.mask[index, y, x]
    away = [k for k in range(len(organ)) if abs(k - index) > 2]
    np.testing.assert_array_equal(mended.mask[away], plain.mask[away])
    status, detail = refused(learner.url, "fewshot", CT, label="aorta", foreground=[[int(x), int(y), index]])
    assert status == 422
    assert "aorta" in detail


def test_unknown_labels_and_wrong_options_are_refused(learner: Server, annotated: dict[str, list[int]]) -> None:
    status, detail = refused(learner.url, "fewshot", CT, labels="tail")
    assert status == 422
    assert "tail" in detail
    assert "liver" in detail
    status, detail = refused(learner.url, "fewshot", CT, budget_s="soon")
    assert status == 422
    assert "budget_s" in detail


def test_heads_are_listed_pinned_carried_over_and_removed(
    learner: Server, annotated: dict[str, list[int]], ct: Truth, tmp_path: Path
) -> None:
    url = learner.url
    name = slicer(url, "fewshot", CT, wait=True).params["head"]
    listed = requests.get(f"{url}/heads", timeout=TIMEOUT).json()
    assert listed["active"] == name
    assert listed["heads"][name]["labels"] == ["liver", "right kidney"]
    assert set(listed["heads"][name]["dice_estimate"]) == {"liver", "right kidney"}

    requests.post(f"{url}/heads/{name}/activate", params={"pin": True}, timeout=TIMEOUT).raise_for_status()
    submit(url, CT, ct, {"spleen": evenly(ct, "spleen", 3)}, tmp_path)
    assert slicer(url, "fewshot", CT).params["head"] == name, "a pinned head stays"
    requests.post(f"{url}/heads/unpin", timeout=TIMEOUT).raise_for_status()
    newer = slicer(url, "fewshot", CT, wait=True).params
    assert newer["head"] != name
    assert set(newer["label_names"]) == {"liver", "right kidney", "spleen"}

    file = requests.get(f"{url}/heads/{name}/file", timeout=TIMEOUT).content
    imported = requests.put(f"{url}/heads/imported", files={"file": ("head.safetensors", file)}, timeout=TIMEOUT)
    assert imported.json() == {"head": "imported"}
    requests.post(f"{url}/heads/imported/activate", params={"pin": True}, timeout=TIMEOUT).raise_for_status()
    from_elsewhere = slicer(url, "fewshot", CT).params
    assert set(from_elsewhere["label_names"]) == {"liver", "right kidney"}
    assert from_elsewhere["support_here"] is False
    assert "less exact" in from_elsewhere["detail"]
    assert requests.delete(f"{url}/heads/imported", timeout=TIMEOUT).status_code == 422, "it answers now"
    requests.post(f"{url}/heads/unpin", timeout=TIMEOUT).raise_for_status()
    requests.post(f"{url}/heads/{newer['head']}/activate", timeout=TIMEOUT).raise_for_status()
    requests.delete(f"{url}/heads/imported", timeout=TIMEOUT).raise_for_status()
    assert requests.get(f"{url}/heads/imported/file", timeout=TIMEOUT).status_code == 404
    damaged = requests.put(f"{url}/heads/other", files={"file": ("head.safetensors", b"no head")}, timeout=TIMEOUT)
    assert damaged.status_code == 422


def test_training_runs_in_its_own_process_and_publishes_a_head(
    learner: Server, annotated: dict[str, list[int]]
) -> None:
    before = set(requests.get(f"{learner.url}/heads", timeout=TIMEOUT).json()["heads"])
    started = requests.post(
        f"{learner.url}/train/fewshot_decoder", json={"steps": 8, "budget_s": 60, "views": 1}, timeout=TIMEOUT
    )
    assert started.status_code == 200, started.text
    listed = requests.get(f"{learner.url}/jobs", timeout=TIMEOUT).json()["jobs"]
    (job,) = [one for one in listed if one["kind"] == "train"]
    assert (job["model"], job["state"] in ("queued", "running")) == ("fewshot_decoder", True)
    end = time.monotonic() + 240
    while (task := requests.get(f"{learner.url}/train/", timeout=TIMEOUT).json())["status"] in ("RUNNING", "SUBMITTED"):
        assert time.monotonic() < end, task
        time.sleep(0.5)
    assert task["status"] == "DONE", task
    assert requests.get(f"{learner.url}/jobs/{job['id']}", timeout=TIMEOUT).json()["state"] == "done"
    new = set(requests.get(f"{learner.url}/heads", timeout=TIMEOUT).json()["heads"]) - before
    assert len(new) == 1
    stats = learner.info()["train_stats"]["fewshot_decoder"]
    assert stats["epoch"] == stats["total_epochs"]
    assert stats["head"] in new
    assert 0 < stats["best_metric"] <= 1
