"""Who may use the encoder: one at a time, and a waiting user before any background work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """A lock with two kinds of holders. An ordinary lock would let a background loop take it again and again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._held = False
        self._urgent_waiting = 0

    @contextmanager
    def hold(self, *, urgent: bool) -> Iterator[None]:
        """Hold the gate. Urgent holders go before others; nobody is interrupted."""
        with self._condition:
            self._urgent_waiting += urgent
            try:
                self._condition.wait_for(lambda: not self._held and (urgent or not self._urgent_waiting))
                self._held = True
            finally:
                self._urgent_waiting -= urgent
        try:
            yield
        finally:
            with self._condition:
                self._held = False
                self._condition.notify_all()
