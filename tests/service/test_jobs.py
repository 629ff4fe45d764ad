"""The queue of long work: order, progress, and that stopping one job leaves the others alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssmsam.progress import Cancelled, shielded, stop_if_cancelled
from ssmsam.service.jobs import Job, Jobs, Paused, UnknownJob


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    queue = Jobs(kept=3)
    yield queue
    queue.stop()


class PriorityLock:
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
    gate, order = PriorityLock(), []
    jobs.submit(Job("adapt"), gate)
    assert gate.began.wait(5)
    last = jobs.submit(Job("adapt", title="later"), lambda job: order.append("later"))
    jobs.submit(Job("adapt", title="now"), lambda job: order.append("now"), first=True)
    assert [job.title for job in jobs.listed()][1:] == ["now", "later"]
    gate.open.set()
    last.result.result(timeout=5)
    assert order == ["now", "later"]


def test_a_job_tells_how_far_it_is_and_what_came_of_it(jobs: Jobs) -> None:
    gate = PriorityLock()
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
    first, second = PriorityLock(), PriorityLock()
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


def test_kinds_do_not_wait_for_each_other(jobs: Jobs) -> None:
    training, adaptation = PriorityLock(), PriorityLock()
    jobs.submit(Job("train"), training)
    jobs.submit(Job("adapt"), adaptation)
    assert training.began.wait(5) and adaptation.began.wait(5)
    assert {job.state for job in jobs.active()} == {"running"}


def test_work_that_gives_way_is_called_again(jobs: Jobs) -> None:
    order: list[str] = []
    urgent = Job("embed")

    def gives_way(job: Job) -> None:
        order.append("first")
        if urgent.state == "queued" and len(order) == 1:
            jobs.submit(urgent, lambda job: order.append("urgent"), first=True)
        if jobs.outranked(job):
            raise Paused

    job = jobs.submit(Job("embed"), gives_way)
    job.result.result(timeout=5)
    assert order == ["first", "urgent", "first"]


def test_what_is_brought_forward_runs_next(jobs: Jobs) -> None:
    gate, order = PriorityLock(), []
    jobs.submit(Job("embed"), gate)
    assert gate.began.wait(5)
    waiting = [jobs.submit(Job("embed"), lambda job, n=n: order.append(n)) for n in range(3)]
    jobs.bring_forward(waiting[1])
    assert [job.id for job in jobs.listed()[1:]] == [waiting[n].id for n in (1, 0, 2)]
    gate.open.set()
    waiting[2].result.result(timeout=5)
    assert order == [1, 0, 2]


def test_a_paused_job_can_be_stopped_while_it_waits(jobs: Jobs) -> None:
    gate = PriorityLock()

    def gives_way(job: Job) -> None:
        jobs.submit(Job("embed"), gate, first=True)
        raise Paused

    job = jobs.submit(Job("embed"), gives_way)
    assert gate.began.wait(5)
    assert jobs.cancel(job.id).state == "cancelled"
    with pytest.raises(Cancelled):
        job.result.result(timeout=5)


def test_brief_work_is_forgotten_when_it_ends(jobs: Jobs) -> None:
    job = jobs.submit(Job("segment", brief=True), lambda job: "mask")
    assert job.result.result(timeout=5) == "mask"
    assert jobs.listed() == []
    assert job.state == "done"


def test_a_job_stops_work_that_is_told_no_progress(jobs: Jobs) -> None:
    """Deep inside, such as in an encoder, nobody hands the job's progress on."""
    began = threading.Event()

    def deep(job: Job) -> None:
        while True:
            began.set()
            stop_if_cancelled()
            time.sleep(0.002)

    job, other = jobs.submit(Job("segment"), deep), jobs.submit(Job("adapt"), PriorityLock())
    assert began.wait(5)
    jobs.cancel(job.id)
    with pytest.raises(Cancelled):
        job.result.result(timeout=5)
    assert other.state in ("queued", "running") and not other.cancelled


def test_what_a_person_said_is_finished_whoever_stops_it(jobs: Jobs) -> None:
    job, kept = Job("segment"), []

    def work() -> None:
        with jobs.running(job):
            job.cancel()
            with shielded():
                stop_if_cancelled()
                kept.append("annotation")
            stop_if_cancelled()

    with pytest.raises(Cancelled):
        work()
    assert kept == ["annotation"]


def test_jobs_of_many_threads_keep_their_own_progress(jobs: Jobs) -> None:
    """Each thread reports its own; one of them is stopped, and no other."""
    found: dict[str, list[int]] = {}

    def work(number: int) -> None:
        job = Job("segment", owner=str(number))
        with jobs.running(job):
            for step in range(200):
                if number == 3 and step == 50:
                    jobs.cancel(job.id)
                job.progress(f"phase {number}", step, 200)
                assert job.step["phase"] == f"phase {number}"
                found.setdefault(job.owner, []).append(step)

    with ThreadPoolExecutor(8) as pool:
        ended = [pool.submit(work, number) for number in range(8)]
    assert [number for number, one in enumerate(ended) if one.exception()] == [3]
    assert {owner: len(steps) for owner, steps in found.items()} == {str(n): 50 if n == 3 else 200 for n in range(8)}
