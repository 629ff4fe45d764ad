"""Who may use the encoder: one at a time, and a waiting user before any background work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ssmsam.progress import waited, without_pauses


class PriorityLock:
    """A lock with two kinds of holders. An ordinary lock would let a background loop take it again and again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._held = False
        self._urgent_waiting = 0

    @contextmanager
    def hold(self, *, urgent: bool) -> Iterator[None]:
        """Hold the gate. Urgent holders go before others, which are interrupted only where they :meth:`let_pass`.

        Raises :class:`~ssmsam.progress.Cancelled` while it waits.
        """
        with self._condition:
            self._urgent_waiting += urgent
            try:
                waited(self._condition, lambda: not self._held and (urgent or not self._urgent_waiting))
                self._held = True
            finally:
                self._urgent_waiting -= urgent
        try:
            with without_pauses():
                yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()

    def let_pass(self) -> float:
        """Let those go first that wait with urgency: for a holder without, in the middle of its work. The seconds that
        this took."""
        with self._condition:
            if not self._urgent_waiting:
                return 0.0
            started = time.perf_counter()
            self._held = False
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._held and not self._urgent_waiting)
            self._held = True
            return time.perf_counter() - started
