"""How long work tells what it is doing, and how it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``. Raise :class:`Cancelled` inside it to stop the work cleanly."""

POLL_S = 0.1
"""How often what waits looks whether it was cancelled: a guess, far below the second in which people expect it."""

PATIENCE_S = 1.0
"""How long long work waits for brief work at one step: a guess, the time of a click on a slice that is not embedded."""

T = TypeVar("T")


class Cancelled(Exception):
    """The user stopped the work. Not an error: what was finished before stays."""


class CancelToken:
    """Asks one piece of work to stop. Safe for threads; it cannot be taken back."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; whether it is cancelled."""
        return self._event.wait(seconds)


class Lock(Protocol):
    """What :func:`holding` takes: the locks of ``threading``."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class Turns:
    """Whose turn it is to compute: clicks at once, long work in few ``places`` and while nobody waits for a click.

    Long work pauses between its steps (:func:`stop_if_cancelled`) for as long as something brief is at work, but never
    longer than :data:`PATIENCE_S` at once, so that it comes to its end where many people click.
    """

    def __init__(self, places: int = 1) -> None:
        self._places = threading.Semaphore(places)
        self._changed = threading.Condition()
        self._brief = 0

    @contextmanager
    def brief(self) -> Iterator[None]:
        """In this block somebody waits for an answer that takes a moment."""
        with self._changed:
            self._brief += 1
        try:
            yield
        finally:
            with self._changed:
                self._brief -= 1
                self._changed.notify_all()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """In this block the thread's work pauses while anything brief is at work."""
        before = _turns.set(self)
        try:
            yield
        finally:
            _turns.reset(before)

    @contextmanager
    def long(self) -> Iterator[None]:
        """The same in one of the places, the only one of a thread. Raises :class:`Cancelled` while it waits for it."""
        with holding(self._places), self.pausing():
            yield

    def pause(self) -> None:
        """Wait while anything brief is at work. Raises :class:`Cancelled` meanwhile."""
        end = time.monotonic() + PATIENCE_S
        with self._changed:
            while self._brief and time.monotonic() < end:
                self._changed.wait(POLL_S)
                if any(token.cancelled for token in _tokens.get()):
                    raise Cancelled


_turns: ContextVar[Turns | None] = ContextVar("ssmsam_turns", default=None)
_tokens: ContextVar[tuple[CancelToken, ...]] = ContextVar("ssmsam_cancel_tokens", default=())


@contextmanager
def cancellable(token: CancelToken) -> Iterator[CancelToken]:
    """In this block the thread's work is asked to stop by ``token``, and by those of the blocks around it."""
    before = _tokens.set((*_tokens.get(), token))
    try:
        yield token
    finally:
        _tokens.reset(before)


@contextmanager
def shielded() -> Iterator[None]:
    """In this block nothing stops the thread's work: what was begun on a person's behalf is finished."""
    before = _tokens.set(())
    try:
        yield
    finally:
        _tokens.reset(before)


def stop_if_cancelled() -> None:
    """Raise :class:`Cancelled` where this thread's work was asked to stop; let clicks go first where it is long."""
    if any(token.cancelled for token in _tokens.get()):
        raise Cancelled
    turns = _turns.get()
    if turns is not None:
        turns.pause()


@contextmanager
def holding(lock: Lock) -> Iterator[None]:
    """Hold a lock in this block. Raises :class:`Cancelled` while it waits for it."""
    while not lock.acquire(timeout=POLL_S):
        stop_if_cancelled()
    try:
        yield
    finally:
        lock.release()


def result_of(future: Future[T]) -> T:
    """What comes of a future, or the error that it raises. Raises :class:`Cancelled` while it waits for it."""
    while True:
        try:
            return future.result(timeout=POLL_S)
        except NotYet:
            if future.done():  # its own error, which may be of this kind
                raise
            stop_if_cancelled()


def waited(condition: threading.Condition, predicate: Callable[[], Any]) -> None:
    """Wait with a condition that is held until something holds. Raises :class:`Cancelled` meanwhile."""
    while not condition.wait_for(predicate, timeout=POLL_S):
        stop_if_cancelled()


@contextmanager
def without_pauses() -> Iterator[None]:
    """In this block long work does not pause: it holds something that a click may need."""
    before = _turns.set(None)
    try:
        yield
    finally:
        _turns.reset(before)


def silent(phase: str, done: int, total: int) -> None:
    """A progress callback that tells nobody. The work can be stopped all the same, see :func:`cancellable`."""
    stop_if_cancelled()
