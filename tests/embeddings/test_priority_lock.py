from __future__ import annotations

import threading
import time

import pytest

from ssmsam.embeddings.priority_lock import PriorityLock


def test_a_user_goes_before_background_work_that_waited_longer():
    gate = PriorityLock()
    order: list[str] = []

    def work(name: str, urgent: bool) -> None:
        with gate.hold(urgent=urgent):
            order.append(name)

    threads = []
    with gate.hold(urgent=False):
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

    def click() -> None:
        with gate.hold(urgent=True):
            order.append("user")

    user = threading.Thread(target=click)
    with gate.hold(urgent=False):
        assert gate.let_pass() == 0
        user.start()
        until = time.monotonic() + 10
        while not order:
            gate.let_pass()
            assert time.monotonic() < until
        order.append("background")
    user.join()
    assert order == ["user", "background"]


@pytest.mark.parametrize("urgent", [True, False])
def test_an_error_inside_opens_the_gate(urgent):
    gate = PriorityLock()
    with pytest.raises(RuntimeError), gate.hold(urgent=urgent):
        raise RuntimeError
    with gate.hold(urgent=False):
        pass
