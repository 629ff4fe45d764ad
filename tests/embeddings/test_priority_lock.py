from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ssmsam.progress import PriorityLock, Turns


def click() -> bool:
    return True


def background_work() -> bool:
    return False


def test_a_user_goes_before_background_work_that_waited_longer():
    gate = PriorityLock()
    order: list[str] = []

    def work(name: str, urgent: bool) -> None:
        with gate.hold(urgent=lambda: urgent):
            order.append(name)

    threads = []
    with gate.hold(urgent=background_work):
        for name in ("background 1", "background 2", "user"):
            threads.append(threading.Thread(target=work, args=(name, name == "user")))
            threads[-1].start()
            time.sleep(0.05)  # so that they wait in this order
    for thread in threads:
        thread.join()
    assert order[0] == "user"
    assert sorted(order) == ["background 1", "background 2", "user"]


def test_background_work_lets_a_user_pass_in_its_middle():
    gate = PriorityLock()
    order: list[str] = []

    def look() -> None:
        with gate.hold(urgent=click):
            order.append("user")

    user = threading.Thread(target=look)
    with gate.hold(urgent=background_work):
        assert gate.let_pass(urgent=background_work) == 0
        user.start()
        until = time.monotonic() + 10
        while not order:
            gate.let_pass(urgent=background_work)
            assert time.monotonic() < until
        order.append("background")
    user.join()
    assert order == ["user", "background"]


@pytest.mark.parametrize("urgent", [True, False])
def test_an_error_inside_opens_the_gate(urgent):
    gate = PriorityLock()
    with pytest.raises(RuntimeError), gate.hold(urgent=lambda: urgent):
        raise RuntimeError
    with gate.hold(urgent=background_work):
        pass


def test_long_work_that_waits_does_not_keep_the_user_from_leaving(monkeypatch):
    monkeypatch.setattr("ssmsam.progress.PATIENCE_S", 5.0)
    gate, turns = PriorityLock(), Turns()

    def embed() -> None:
        with turns.long(), gate.hold(urgent=background_work):
            pass

    background = threading.Thread(target=embed)
    with turns.brief():
        with gate.hold(urgent=click):
            background.start()
            time.sleep(0.4)  # it waits, and would pause for the click
            done = time.monotonic()
        assert time.monotonic() - done < 1
    background.join()


def test_what_a_user_begins_to_wait_for_becomes_urgent():
    gate, order, wanted = PriorityLock(), [], threading.Event()

    def work(name: str, urgent: Callable[[], bool]) -> None:
        with gate.hold(urgent=urgent):
            order.append(name)

    threads = []
    with gate.hold(urgent=click):
        for name, urgent in (("wanted", wanted.is_set), ("other", background_work), ("click", click)):
            threads.append(threading.Thread(target=work, args=(name, urgent)))
            threads[-1].start()
            time.sleep(0.05)  # so that they wait in this order
        wanted.set()
    for thread in threads:
        thread.join()
    assert order == ["wanted", "click", "other"]


def test_what_became_urgent_in_its_middle_lets_nobody_pass():
    gate, wanted, entered = PriorityLock(), threading.Event(), threading.Event()

    def look() -> None:
        with gate.hold(urgent=click):
            entered.set()

    user = threading.Thread(target=look)
    with gate.hold(urgent=wanted.is_set):
        user.start()
        time.sleep(0.05)
        wanted.set()
        gate.let_pass(urgent=wanted.is_set)
        assert not entered.is_set()
    user.join()


def test_background_work_comes_to_its_turn_among_clicks_without_end():
    gate, stop, clicks = PriorityLock(), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            with gate.hold(urgent=click):
                clicks.append(1)
                time.sleep(0.02)

    users = [threading.Thread(target=look) for _ in range(3)]
    for user in users:
        user.start()
    try:
        started = time.monotonic()
        with gate.hold(urgent=background_work):
            passing = gate.let_pass(urgent=background_work, patience=0.5)
            assert 0.4 < passing < 1.5
            assert gate.let_pass(urgent=background_work, patience=0.5 - passing) == 0
        assert time.monotonic() - started < 4
        assert len(clicks) > 20
    finally:
        stop.set()
        for user in users:
            user.join()
