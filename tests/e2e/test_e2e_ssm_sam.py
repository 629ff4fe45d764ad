"""SSM-SAM over REST: a few slices give the organ, and what is annotated gives a better start, or the old one stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, LABELS, SAMPLES, dice
from serving import Server
from viewers import TIMEOUT, ohif, refused, slicer, submit_slices

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

PART = slice(10, 27)
"""The slices of the sample CT that are used, so that a start takes seconds."""
NUMBERS = {"liver": 1, "right kidney": 2}
KNOWN = (3, 7, 11, 14)
"""Annotated slices, counted from the first of that part. All show both organs."""
COMPLETED = 0.8
"""Dice of an organ on the slices between them."""
SHORT = {"budget_s": 4, "wait": True}
"""An adaptation that is long enough for a test, and the answer after it."""
QUICK = {"steps": 2, "inner_steps": 1, "views": 0, "estimate_steps": 1}


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    labels = read_volume(SAMPLES / "abdomen_labels" / f"{CT}.nii.gz").array[PART]
    return sum((labels == LABELS[organ]) * np.uint8(value) for organ, value in NUMBERS.items())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ssm-sam")
    image = read_volume(SAMPLES / "abdomen" / f"{CT}.nii.gz")
    write_volume(Volume(image.array[PART], image.affine), folder / "studies" / "part.nii.gz")
    running = Server(studies=folder / "studies", home=folder / "home", conf={"precompute": "false", "threads": "1"})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def annotated(server: Server, truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("masks") / "part.nii.gz"
    write_volume(Volume(truth, read_volume(Path(server.studies) / "part.nii.gz").affine), file)
    submit_slices(server.url, "part", file, NUMBERS, KNOWN)


def train(server: Server, **options: Any) -> requests.Response:
    return requests.post(f"{server.url}/train/ssm_sam_meta", json=options, timeout=TIMEOUT)


def the_task(server: Server) -> dict[str, Any]:
    return requests.get(f"{server.url}/train/", timeout=TIMEOUT).json()


def tasks(server: Server) -> list[dict[str, Any]]:
    """All that was ever to be trained, the oldest first."""
    found: list[dict[str, Any]] = requests.get(f"{server.url}/train/?all=true", timeout=TIMEOUT).json()
    return found


def wait(until: Callable[[], Any], server: Server, *, seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, (the_task(server), server.said()[-2000:])
        time.sleep(0.3)
    return found


def starts(server: Server) -> dict[str, Any]:
    return requests.get(f"{server.url}/starts", timeout=TIMEOUT).json()


def test_without_annotations_nothing_is_started(server: Server) -> None:
    assert refused(server.url, "ssm_sam", "part")[0] == 422
    answer = train(server)
    assert answer.status_code == 422
    assert "at least 2 tasks" in answer.json()["detail"]
    assert "there are 0" in answer.json()["detail"]
    assert requests.get(f"{server.url}/train/", timeout=TIMEOUT).status_code == 404, "no process was started"


def test_a_few_slices_give_the_right_organs(server: Server, annotated: None, truth: np.ndarray) -> None:
    answer = slicer(server.url, "ssm_sam", "part", **SHORT)
    assert answer.params["label_names"] == NUMBERS
    assert (answer.params["method"], answer.params["start"]) == ("ssm_sam", "")
    rest = np.setdiff1d(np.arange(len(truth)), KNOWN)
    for value in NUMBERS.values():
        assert dice(answer.mask[rest] == value, truth[rest] == value) > COMPLETED
    for index in KNOWN:
        np.testing.assert_array_equal(answer.mask[index], truth[index])

    info = server.info()
    assert info["models"]["ssm_sam"]["labels"] == info["models"]["fewshot"]["labels"]
    shown = ohif(server.url, "ssm_sam", "part", **SHORT).mask
    for organ, value in NUMBERS.items():
        np.testing.assert_array_equal(shown == info["models"]["ssm_sam"]["labels"][organ], answer.mask == value)

    methods = info["ssmsam"]["methods"]
    assert methods["ssm_sam"]["head"]["active"] == answer.params["head"]
    assert methods["fewshot"]["head"]["active"] == info["ssmsam"]["head"]["active"] == "", "each has its own heads"
    heads = requests.get(f"{server.url}/heads", params={"method": "ssm_sam"}, timeout=TIMEOUT).json()
    assert heads["heads"][answer.params["head"]]["method"] == "ssm_sam"
    assert requests.get(f"{server.url}/heads", timeout=TIMEOUT).json()["heads"] == {}
    assert requests.get(f"{server.url}/heads", params={"method": "none"}, timeout=TIMEOUT).status_code == 404


@pytest.mark.slow
def test_a_cancelled_training_leaves_the_start_as_it_was(server: Server, annotated: None) -> None:
    assert server.info()["train_stats"] == {}, "viewers draw an empty entry as a training that is done"
    assert train(server, steps="many").status_code == 422
    assert train(server, **{**QUICK, "steps": 1000}).status_code == 200
    queued = requests.post(f"{server.url}/train/fewshot_decoder?enqueue=true", json={}, timeout=TIMEOUT)
    assert queued.status_code == 200

    def learning() -> dict[str, Any] | None:
        assert tasks(server)[0]["status"] in ("SUBMITTED", "RUNNING"), server.said()[-2000:]
        stats = server.info()["train_stats"].get("ssm_sam_meta", {})
        return stats if stats.get("phase") == "meta" and stats["epoch"] > 0 else None

    stats = wait(learning, server)
    assert stats["total_epochs"] == 1000
    assert stats["eta_s"] > 0
    assert stats["loss"] > 0
    stopped = requests.delete(f"{server.url}/train/", timeout=TIMEOUT).json()
    assert stopped["queued"] == 1
    wait(lambda: [task["status"] for task in tasks(server)] == ["STOPPED", "STOPPED"], server)
    stats = server.info()["train_stats"]
    assert stats["ssm_sam_meta"]["phase"] == "stopped" and "fewshot_decoder" not in stats, "the next one did not begin"
    assert starts(server) == {"active": "shipped", "previous": "shipped", "starts": {"shipped": {}}}


@pytest.mark.slow
def test_a_training_publishes_a_start_and_it_can_be_taken_back(server: Server, annotated: None) -> None:
    assert train(server, **QUICK).status_code == 200
    wait(lambda: the_task(server)["status"] not in ("SUBMITTED", "RUNNING"), server)
    assert the_task(server)["status"] == "DONE", the_task(server)
    stats = server.info()["train_stats"]["ssm_sam_meta"]
    assert (stats["phase"], stats["steps"]) == ("done", 2)
    assert 0 < stats["best_metric"] <= 1
    found = starts(server)
    (name,) = set(found["starts"]) - {"shipped"}
    assert name == stats["start"]
    assert found["active"] == (name if stats["activated"] else "shipped")
    card = found["starts"][name]
    new, old = (
        np.mean([one["after"] for one in card[kind].values()]) for kind in ("dice_estimate", "shipped_estimate")
    )
    assert stats["activated"] == (new >= old) or abs(new - old) < 1e-3, "rounded"

    changed = requests.post(f"{server.url}/starts/{name}/activate", timeout=TIMEOUT).json()
    assert changed["active"] == name
    answer = slicer(server.url, "ssm_sam", "part", **SHORT)
    assert answer.params["start"] == name
    assert answer.params["adapted_now"] == answer.params["adapted"], "it was judged just now"
    assert answer.params["dice_estimate"]
    back = requests.post(f"{server.url}/starts/roll_back", timeout=TIMEOUT).json()
    assert back == {"active": "shipped", "previous": name}
    assert server.info()["ssmsam"]["methods"]["ssm_sam"]["start"] == ""
    unknown = requests.post(f"{server.url}/starts/none/activate", timeout=TIMEOUT)
    assert unknown.status_code == 404
    assert name in unknown.json()["detail"]
