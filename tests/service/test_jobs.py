"""The queue of long work: order, progress, and that stopping one job leaves the others alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ssmsam.progress import Cancelled
from ssmsam.service.jobs import LATER, NOW, Job, Jobs, UnknownJob


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    queue = Jobs(kept=3)
    yield queue
    queue.stop()


class Gate:
    """Work that goes on step by step until it is let go."""

    def __init__(self) -> None:
        self.open, self.began = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> str:
        step = 0
        while not self.open.is_set():
            step += 1
            job.progress("adapt", step, 1000)
            self.began.set()
            time.sleep(0.002)
        return "adapted"


def test_what_somebody_waits_for_goes_first(jobs: Jobs) -> None:
    gate, order = Gate(), []
    jobs.submit(Job("adapt"), gate)
    assert gate.began.wait(5)
    last = jobs.submit(Job("adapt", priority=LATER), lambda job: order.append("later"))
    jobs.submit(Job("adapt", priority=NOW), lambda job: order.append("now"))
    assert [job.priority for job in jobs.listed()][1:] == [NOW, LATER]
    gate.open.set()
    last.result.result(timeout=5)
    assert order == ["now", "later"]


def test_a_job_tells_how_far_it_is_and_what_came_of_it(jobs: Jobs) -> None:
    gate = Gate()
    job = jobs.submit(Job("adapt", title="fewshot adapts", owner="reader", image="a", model="fewshot"), gate)
    assert gate.began.wait(5)
    told = job.as_json()
    assert (told["state"], told["phase"], told["total"]) == ("running", "adapt", 1000)
    assert told["eta_s"] >= 0
    assert (told["owner"], told["image"], told["title"]) == ("reader", "a", "fewshot adapts")
    gate.open.set()
    assert job.result.result(timeout=5) == "adapted"
    assert job.as_json()["state"] == "done"
    assert job.as_json()["eta_s"] is None


def test_stopping_one_job_touches_no_other(jobs: Jobs) -> None:
    first, second = Gate(), Gate()
    running = jobs.submit(Job("adapt", owner="a"), first)
    waiting = jobs.submit(Job("adapt", owner="b"), second)
    third = jobs.submit(Job("adapt", owner="c"), lambda job: job.progress("adapt", 1, 1))
    assert first.began.wait(5)
    assert jobs.cancel(waiting.id).state == "cancelled", "it never began"
    assert running.state == "running"
    assert not running.cancelled
    assert not second.began.is_set()
    jobs.cancel(running.id)
    with pytest.raises(Cancelled):
        running.result.result(timeout=5)
    third.result.result(timeout=5)
    assert [job.state for job in (running, waiting, third)] == ["cancelled", "cancelled", "done"]
    assert jobs.cancel(third.id).state == "done", "what ended stays as it ended"


def test_work_of_a_request_is_listed_and_stopped_like_any_other(jobs: Jobs) -> None:
    job = Job("segment", model="fewshot")

    def work() -> None:
        with jobs.running(job):
            job.progress("segment", 1, 4)
            assert jobs.active("segment", model="fewshot") == [job]
            assert not jobs.active("segment", model="ssm_sam")
            jobs.cancel(job.id)
            job.progress("segment", 2, 4)

    with pytest.raises(Cancelled):
        work()
    assert job.state == "cancelled"
    assert not jobs.active()


def test_a_failure_is_told_and_the_next_job_runs(jobs: Jobs) -> None:
    def broken(job: Job) -> None:
        raise ValueError("the image was removed")

    failed = jobs.submit(Job("adapt"), broken)
    after = jobs.submit(Job("adapt"), lambda job: None)
    after.result.result(timeout=5)
    assert (failed.state, failed.detail) == ("failed", "the image was removed")


def test_ended_jobs_are_forgotten_in_their_order(jobs: Jobs) -> None:
    ended = [jobs.submit(Job("adapt"), lambda job: None) for _ in range(5)]
    ended[-1].result.result(timeout=5)
    assert [job.id for job in jobs.listed()] == [job.id for job in reversed(ended[2:])]
    with pytest.raises(UnknownJob, match="GET /jobs"):
        jobs.get(ended[0].id)
