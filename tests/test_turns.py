"""Clicks go before long work."""

from __future__ import annotations

import threading
import time

import pytest

from ssmsam.progress import Busy, Cancelled, CancelToken, Turns, cancellable, stop_if_cancelled


def test_long_work_pauses_between_its_steps_while_somebody_waits_for_a_click():
    turns, steps, going = Turns(), [], threading.Event()

    def long_work() -> None:
        with turns.long():
            going.set()
            for _ in range(200):
                stop_if_cancelled()
                steps.append(time.monotonic())
                time.sleep(0.002)

    worker = threading.Thread(target=long_work)
    worker.start()
    going.wait()
    with turns.brief():
        time.sleep(0.05)  # the step that was at work ends
        before = len(steps)
        time.sleep(0.3)
        assert len(steps) == before
    worker.join()
    assert len(steps) == 200


def test_brief_work_never_pauses_and_long_work_comes_to_its_end_among_many_clicks(monkeypatch):
    monkeypatch.setattr("ssmsam.progress.PATIENCE_S", 0.05)
    turns = Turns()
    with turns.brief():
        started = time.monotonic()
        stop_if_cancelled()
        assert time.monotonic() - started < 0.04
        with turns.long():
            for _ in range(3):
                stop_if_cancelled()
        assert 0.15 <= time.monotonic() - started < 2


def test_long_work_runs_in_as_many_places_as_there_are():
    turns, most, at_work = Turns(2), 0, 0
    changed = threading.Lock()

    def long_work() -> None:
        nonlocal most, at_work
        with turns.long():
            with changed:
                at_work += 1
                most = max(most, at_work)
            time.sleep(0.02)
            with changed:
                at_work -= 1

    workers = [threading.Thread(target=long_work) for _ in range(6)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert most == 2


def endless(turns: Turns) -> None:
    with turns.long():
        while True:
            stop_if_cancelled()


@pytest.mark.parametrize("where", ["for a place", "for a click"])
def test_what_waits_can_be_cancelled(where: str):
    turns, token = Turns(), CancelToken()
    threading.Timer(0.1, token.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled), cancellable(token), turns.long() if where == "for a place" else turns.brief():
        endless(turns)
    assert time.monotonic() - started < 0.9


def test_a_place_goes_to_the_work_that_began_first():
    turns, order, begun = Turns(), [], threading.Barrier(2)

    def in_two_steps() -> None:
        with turns.pausing():
            begun.wait()
            with turns.long():
                order.append("first")
            with turns.long():
                order.append("first again")

    def later(name: str) -> None:
        with turns.long():
            order.append(name)

    workers = [threading.Thread(target=in_two_steps), *(threading.Thread(target=later, args=(n,)) for n in "abcd")]
    with turns.long():
        workers[0].start()
        begun.wait()
        for worker in workers[1:]:
            worker.start()
            time.sleep(0.05)  # so that they come in this order
    for worker in workers:
        worker.join()
    assert order.index("first again") <= 2, "not behind all others"
    assert [name for name in order if len(name) == 1] == [*"abcd"]


def test_who_has_little_time_does_not_wait_for_a_place_longer():
    turns, seen = Turns(), []
    with turns.long(), pytest.raises(Busy), turns.long(lambda *step: seen.append(step), within=0.2):
        pass
    assert seen == [("wait", 0, 0)]
    with turns.long(within=0):
        pass
