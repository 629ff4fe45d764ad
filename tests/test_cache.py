"""What is remembered stays within its bound, and is made once however many ask."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssmsam.cache import Cache, KeyedLocks, SingleFlight
from ssmsam.progress import Cancelled, CancelToken, FairLock, cancellable, stop_if_cancelled


class Slow:
    """Work that is counted and goes on until it is let go, or cancelled."""

    def __init__(self) -> None:
        self.calls, self.began, self.go = 0, threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        self.began.set()
        while not self.go.wait(0.005):
            stop_if_cancelled()
        return "made"


def test_the_least_recently_used_is_forgotten() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)


def test_to_look_whether_it_is_there_is_no_use() -> None:
    cache: Cache[str, int] = Cache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert "a" in cache
    cache.put("c", 3)
    assert "a" not in cache


@pytest.mark.parametrize("keep_newest", [True, False])
def test_values_are_bounded_by_their_bytes(keep_newest: bool) -> None:
    cache: Cache[str, bytes] = Cache(100, size=len, keep_newest=keep_newest)
    for name in "abcdef":
        cache.put(name, bytes(30))
        assert cache.total <= 100
    assert len(cache) == 3
    cache.put("e", bytes(10))
    assert cache.total == 70, "what is put again counts once"
    cache.put("large", bytes(1000))
    assert ("large" in cache, len(cache)) == ((True, 1) if keep_newest else (False, 3))


def test_many_who_ask_at_once_make_it_once() -> None:
    cache, make = Cache[str, str](8), Slow()
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.recalled, "pair", make) for _ in range(8)]
        assert make.began.wait(5)
        assert cache.recalled("another pair", lambda: "at once") == "at once", "other names do not wait"
        make.go.set()
        assert {one.result(5) for one in found} == {"made"}
    assert make.calls == 1
    assert cache.recalled("pair", Slow()) == "made"


def test_an_error_goes_to_all_who_wait_and_is_not_kept() -> None:
    flights, began, go = SingleFlight[str, str](), threading.Event(), threading.Event()

    def broken() -> str:
        began.set()
        go.wait(5)
        raise ValueError("unreadable")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, "image", broken)
        assert began.wait(5)
        second = pool.submit(flights.run, "image", lambda: "not made twice")
        time.sleep(0.05)
        go.set()
        for one in (first, second):
            with pytest.raises(ValueError, match="unreadable"):
                one.result(5)
    assert flights.run("image", lambda: "mended") == "mended"


def test_who_waits_takes_over_from_one_who_was_cancelled() -> None:
    cache, make, token = Cache[str, str](8), Slow(), CancelToken()

    def cancelled_soon() -> str:
        with cancellable(token):
            return cache.recalled("pair", make)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cancelled_soon)
        assert make.began.wait(5)
        second = pool.submit(cache.recalled, "pair", make)
        time.sleep(0.05)
        token.cancel()
        with pytest.raises(Cancelled):
            first.result(5)
        make.go.set()
        assert second.result(5) == "made"
    assert make.calls == 2


def test_who_waits_is_cancelled_alone() -> None:
    cache, make, token = Cache[str, str](8), Slow(), CancelToken()

    def cancelled_soon() -> str:
        with cancellable(token):
            return cache.recalled("pair", make)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.recalled, "pair", make)
        assert make.began.wait(5)
        second = pool.submit(cancelled_soon)
        token.cancel()
        with pytest.raises(Cancelled):
            second.result(1)
        assert not first.done()
        make.go.set()
        assert first.result(5) == "made"


def test_a_lock_is_for_one_name_and_can_be_waited_for_in_vain() -> None:
    locks, token = KeyedLocks(), CancelToken()
    token.cancel()

    def wants(name: str) -> str:
        with cancellable(token), locks.hold(name):
            return "held"

    with ThreadPoolExecutor(1) as pool, locks.hold("a"):
        assert pool.submit(wants, "b").result(1) == "held"
        with pytest.raises(Cancelled):
            pool.submit(wants, "a").result(1)


def test_who_waits_for_a_lock_is_not_overtaken() -> None:
    """Whoever gives it back and wants it again at once comes after those who waited."""
    lock, order, there = FairLock(), [], threading.Event()

    def second() -> None:
        there.set()
        with lock:
            order.append("second")

    for _ in range(20):
        order.clear(), there.clear()
        with lock, lock:
            waiting = threading.Thread(target=second)
            waiting.start()
            there.wait()
            time.sleep(0.005)
        with lock:
            order.append("first again")
        waiting.join()
        assert order == ["second", "first again"]
