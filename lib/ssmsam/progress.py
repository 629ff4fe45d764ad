"""How long work tells what it is doing, and how it is stopped."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``. Raise :class:`Cancelled` inside it to stop the work cleanly."""

POLL_S = 0.1
"""How often what waits looks whether it was cancelled: a guess, far below the second in which people expect it."""

PATIENCE_S = 1.0
"""How long long work waits for brief work at one step: a guess, the time of a click on a slice that is not embedded."""

T = TypeVar("T")


class Cancelled(Exception):
    """The user stopped the work. Not an error: what was finished before stays."""


class Busy(Exception):
    """No place became free in time."""


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


class FairLock:
    """A lock that goes to whoever has waited longest. The thread that has it may take it again.

    Held in a ``with`` block. Who waits for it can be cancelled: then :class:`Cancelled` is raised.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        with self._changed:
            if self._owner != threading.get_ident():
                self._wait()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._owner = None
                self._changed.notify_all()

    def _wait(self) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            waited(self._changed, lambda: self._owner is None and self._waiting[0] is ticket)
            self._owner = threading.get_ident()
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()  # the next one may be first now


class Turns:
    """Whose turn it is to compute: clicks at once, long work in few ``places`` and while nobody waits for a click.

    Long work pauses between its steps (:func:`stop_if_cancelled`) for as long as something brief is at work, but never
    longer than :data:`PATIENCE_S` at once, so that it comes to its end where many people click. A free place goes to
    the work that began first: what takes one again does not queue up behind all others.
    """

    def __init__(self, places: int = 1) -> None:
        self._free = places
        self._changed = threading.Condition()
        self._brief = 0
        self._waiting: list[tuple[float, int]] = []
        """For a place: when the work began, and a number of its own."""
        self._numbers = itertools.count()

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

    def pausing(self) -> AbstractContextManager[None]:
        """In this block the thread does long work, which begins now: it pauses while anything brief is at work."""
        return _set(_long_work, (self, time.monotonic()))

    @contextmanager
    def long(self, progress: Progress | None = None, *, within: float = math.inf) -> Iterator[None]:
        """Long work in one of the places, the only one of a thread. Raises :class:`Cancelled` while it waits for it,
        of which ``progress("wait", 0, 0)`` tells, and :class:`Busy` after so many seconds."""
        if progress and not self._free:
            progress("wait", 0, 0)
        with nullcontext() if _long_work.get() else self.pausing():
            self._take_place(within)
            try:
                yield
            finally:
                with self._changed:
                    self._free += 1
                    self._changed.notify_all()

    def _take_place(self, within: float) -> None:
        work, end = _long_work.get(), time.monotonic() + within
        assert work is not None
        with self._changed:
            me = work[1], next(self._numbers)
            self._waiting.append(me)
            try:
                while not self._changed.wait_for(lambda: self._free and min(self._waiting) == me, timeout=POLL_S):
                    _raise_if_cancelled()
                    if time.monotonic() > end:
                        raise Busy
                self._free -= 1
            finally:
                self._waiting.remove(me)

    def quiet(self, timeout: float) -> bool:
        """Whether nothing brief is at work, or at least not any more within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._brief, timeout)

    def pause(self) -> None:
        """Wait while anything brief is at work. Raises :class:`Cancelled` meanwhile."""
        end = time.monotonic() + PATIENCE_S
        while not self.quiet(POLL_S) and time.monotonic() < end:
            _raise_if_cancelled()


_long_work: ContextVar[tuple[Turns, float] | None] = ContextVar("ssmsam_long_work", default=None)
"""Whose turns the thread's long work takes, and when it began; None where it does none."""
_tokens: ContextVar[tuple[CancelToken, ...]] = ContextVar("ssmsam_cancel_tokens", default=())


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    """In this block a variable of this thread has another value."""
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)


def cancellable(token: CancelToken) -> AbstractContextManager[None]:
    """In this block the thread's work is asked to stop by ``token``, and by those of the blocks around it."""
    return _set(_tokens, (*_tokens.get(), token))


def shielded() -> AbstractContextManager[None]:
    """In this block nothing stops the thread's work: what was begun on a person's behalf is finished."""
    return _set(_tokens, ())


def is_urgent() -> bool:
    """Whether somebody waits for what this thread does: it is not long work."""
    return _long_work.get() is None


def _raise_if_cancelled() -> None:
    if any(token.cancelled for token in _tokens.get()):
        raise Cancelled


def stop_if_cancelled() -> None:
    """Raise :class:`Cancelled` where this thread's work was asked to stop; let clicks go first where it is long.

    Called where nothing is held that a click may need. What only waits does not pause: it computes nothing, and a pause
    with a lock in its hand would keep clicks from it.
    """
    _raise_if_cancelled()
    work = _long_work.get()
    if work is not None:
        work[0].pause()


def result_of(future: Future[T]) -> T:
    """What comes of a future, or the error that it raises. Raises :class:`Cancelled` while it waits for it."""
    while True:
        try:
            return future.result(timeout=POLL_S)
        except NotYet:
            if future.done():  # its own error, which may be of this kind
                raise
            _raise_if_cancelled()


def waited(condition: threading.Condition, predicate: Callable[[], Any]) -> None:
    """Wait with a condition that is held until something holds. Raises :class:`Cancelled` meanwhile."""
    while not condition.wait_for(predicate, timeout=POLL_S):
        _raise_if_cancelled()


def without_pauses() -> AbstractContextManager[None]:
    """In this block long work does not pause: it holds something that a click may need."""
    return _set(_long_work, None)


def silent(phase: str, done: int, total: int) -> None:
    """A progress callback that tells nobody. The work can be stopped all the same, see :func:`cancellable`."""
    stop_if_cancelled()


@dataclass(frozen=True, eq=False)
class _Ticket:
    """Of one who waits; ``patience`` in seconds."""

    asked: Callable[[], bool]
    patience: float
    since: float = field(default_factory=time.monotonic)

    @property
    def urgent(self) -> bool:
        return self.asked() or time.monotonic() > self.since + self.patience


class PriorityLock:
    """A lock with two kinds of holders, each in the order of their coming.

    Whether a holder is urgent is asked again and again: one without urgency gets it from a user who begins to wait for
    what it makes, and after some ``patience`` seconds, so that it comes to its end where many people click.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._held = False
        self._waiting: list[_Ticket] = []

    @contextmanager
    def hold(self, *, urgent: Callable[[], bool], patience: float = PATIENCE_S) -> Iterator[None]:
        """Hold the gate. Urgent holders go before others, which are interrupted only where they :meth:`let_pass`.

        Raises :class:`~ssmsam.progress.Cancelled` while it waits.
        """
        ticket = _Ticket(urgent, patience)
        with self._condition:
            self._waiting.append(ticket)
            try:
                waited(self._condition, lambda: self._is_next(ticket))
                self._held = True
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()  # one that was cancelled may have been the next
        try:
            with without_pauses():
                yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()

    def let_pass(self, *, urgent: Callable[[], bool], patience: float = PATIENCE_S) -> float:
        """Let those go first that wait with urgency: for a holder without, in the middle of its work, which waits for
        about ``patience`` seconds. The seconds that this took."""
        ticket = _Ticket(urgent, patience)
        with self._condition:
            if ticket.urgent or not any(one.urgent for one in self._waiting):
                return 0.0
            started = time.perf_counter()
            self._waiting.insert(0, ticket)
            self._held = False
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_next(ticket))
            self._waiting.remove(ticket)
            self._held = True
            return time.perf_counter() - started

    def _is_next(self, ticket: _Ticket) -> bool:
        """Whether the gate is open for this one: the first that is urgent, or the first of all where none is."""
        return not self._held and next((one for one in self._waiting if one.urgent), self._waiting[0]) is ticket
