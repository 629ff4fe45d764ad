"""The automatic model answers at once, adapts beside, and computes nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pocket_service import annotate
from service_over_folder import make_service

from ssmsam.fewshot import pipeline as method
from ssmsam.fewshot.pipeline import Prediction
from ssmsam.progress import Cancelled
from ssmsam.reading import read_volume
from ssmsam.server.clients.rest import InferenceCommand
from ssmsam.server.tasks.fewshot import FewShotTask, hints, slice_dice
from ssmsam.service import fewshot_service
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.fewshot_service import FewShotService


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FewShotService]:
    service = make_service(tmp_path)
    annotate(service, "a", {"liver": (3, 5, 6)}, tmp_path)
    adaptation = service.config.adaptation
    adaptation = replace(adaptation, steps=2, views=replace(adaptation.views, views=0))
    service = replace(service, config=replace(service.config, adaptation=adaptation))
    yield service
    service.jobs.stop()


def run(service: FewShotService, image: str = "a", **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    asked = {"client_id": "reader", "adapt": True, **options}
    path, told = FewShotTask(service)(InferenceCommand.read(asked, image=service.images.from_datastore(image)))
    mask = read_volume(path).array
    Path(path).unlink()
    return mask, told


def ended(service: FewShotService, job: str) -> Any:
    """The job, once it has ended."""
    service.jobs.get(job).result.exception(timeout=60)
    return service.jobs.get(job)


@pytest.fixture(params=[True, False], ids=["better", "no better"])
def better(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(method, "worth_it", lambda estimates: request.param)
    return bool(request.param)


def test_the_adapted_head_answers_from_the_next_run_on_if_it_is_better(service: FewShotService, better: bool) -> None:
    first, told = run(service)
    assert (told["adapted"], told["adapted_now"]) == (False, False)
    one = told["dice_estimate"]["liver"]
    assert one["before"] == one["after"], "each annotated slice was answered by the others"
    assert "runs beside" in told["detail"]
    job = ended(service, told["job"])
    assert (job.state, job.owner, job.image, job.model) == ("done", "reader", "a", "fewshot")
    assert ("does not help" in job.detail) != better
    _, later = run(service)
    assert (later["adapted"], later["adapted_now"], later["job"]) == (better, False, None)
    assert (later["head"] != told["head"]) == better
    assert set(later["dice_estimate"]) == {"liver"}, "the estimate is told whatever came of it"
    again, last = run(service)
    assert last["answered_before"]
    assert last["head"] == later["head"]
    assert better or np.array_equal(again, first)


def test_gradient_steps_are_for_who_asks_for_them(service: FewShotService) -> None:
    assert FewShotTask(service).config()["adapt"] is False
    assert run(service, adapt=False)[1]["job"] is None
    assert run(service)[1]["job"] is not None


def test_nothing_is_computed_twice_until_something_changes(
    service: FewShotService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, told = run(service, adapt=False)
    assert told["job"] is None
    with monkeypatch.context() as patched:
        patched.setattr("ssmsam.server.tasks.fewshot.segment", None)
        same, again = run(service, adapt=False)
        assert again["answered_before"]
        np.testing.assert_array_equal(first, same)
        assert {key: again[key] for key in ("uncertain_slices", "label_names", "head")} == {
            key: told[key] for key in ("uncertain_slices", "label_names", "head")
        }
    assert not run(service, "b", adapt=False)[1]["answered_before"], "another volume"
    clicked = run(service, adapt=False, label="liver", foreground=[[10, 10, 4]])[1]
    assert not clicked["answered_before"], "a click"
    annotate(service, "a", {"liver": (4,)}, tmp_path)
    assert not run(service, adapt=False)[1]["answered_before"], "a slice was annotated"


def test_who_waits_gets_the_adapted_answer(service: FewShotService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "worth_it", lambda estimates: True)
    _, told = run(service, wait=True)
    assert (told["adapted"], told["adapted_now"], told["job"]) == (True, True, None)
    _, told = run(service, wait=True)
    assert (told["adapted"], told["adapted_now"], told["answered_before"]) == (True, False, True)


class Slow:
    """Adaptation that goes on until it is stopped or let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self._adapt = fewshot_service.adapt
        monkeypatch.setattr(fewshot_service, "adapt", self)

    def __call__(self, support: Any, *args: Any, config: Any, progress: Any, **more: Any) -> Any:
        while config.adaptation.steps and not self.go_on.wait(0.005):
            progress("adapt", 1, 30)
            self.began.set()
        return self._adapt(support, *args, config=config, progress=progress, **more)


def test_an_outdated_adaptation_is_stopped_and_the_same_is_not_doubled(
    service: FewShotService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    job = run(service)[1]["job"]
    assert slow.began.wait(30)
    assert service.status["adapting"]["phase"] == "adapt"
    assert run(service)[1]["job"] == job, "the answer does not wait, and nothing runs twice"
    annotate(service, "a", {"liver": (4,)}, tmp_path)
    newer = run(service)[1]["job"]
    assert newer != job
    assert ended(service, job).state == "cancelled"
    slow.go_on.set()
    assert ended(service, newer).state == "done"
    assert service.status["adapting"] == {}


def test_a_stopped_adaptation_leaves_the_proposal_and_is_begun_anew(
    service: FewShotService, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    _, told = run(service)
    assert slow.began.wait(30)
    service.jobs.cancel(told["job"])
    with pytest.raises(Cancelled):
        service.jobs.get(told["job"]).result.result(timeout=30)
    _, later = run(service)
    assert later["head"] == told["head"]
    assert later["job"] not in (None, told["job"])


def test_too_few_slices_to_hold_one_out_are_not_adapted_to(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    annotate(service, "a", {"liver": (3, 6)}, tmp_path)
    _, told = run(service)
    assert (told["job"], told["adapted"]) == (None, False)


def test_wrong_options_are_refused(service: FewShotService) -> None:
    with pytest.raises(InvalidRequest, match="budget_s"):
        run(service, budget_s="soon")


def test_uncertain_slices_have_a_mask_that_nobody_annotated() -> None:
    logits = np.full((1, 4, 2, 2), -1.0)
    logits[:, 1:] = 1.0
    found = Prediction(
        labels=("liver",),
        mask=np.zeros((4, 2, 2), dtype=np.uint8),
        slices=np.arange(4),
        presence=np.ones((1, 4)),
        uncertainty=np.array([[1.0, 0.1, 0.3, 0.5]]),
        logits=logits,
    )
    annotated: Any = {"liver": [SimpleNamespace(index=3, volume="this"), SimpleNamespace(index=2, volume="another")]}
    expected = slice_dice(found, annotated, "this")
    assert {index: round(one, 3) for index, one in expected["liver"].items()} == {2: 0.7, 1: 0.9}
    assert hints(expected) == {"liver": [2, 1]} and hints({"liver": {2: 0.7, 1: 0.99}}) == {"liver": [2]}
