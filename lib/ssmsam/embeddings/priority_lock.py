"""Who may use the encoder: one at a time, and a waiting user before any background work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ssmsam.progress import PATIENCE_S, waited, without_pauses


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
