"""What long work is doing right now, for whoever asks, and a way to stop it."""

from __future__ import annotations

import threading
import time
from typing import Any

from ssmsam.progress import Cancelled


class Phase:
    """Hears the progress of one piece of work at a time, whose steps may run in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._now: tuple[str, int, int] | None = None
        self._began = 0.0

    def progress(self, phase: str, done: int, total: int) -> None:
        """A :data:`~ssmsam.progress.Progress`. Raises Cancelled once after :meth:`cancel`."""
        with self._lock:
            if self._now is None or self._now[0] != phase:
                self._began = time.monotonic()
            self._now = (phase, done, total)
            if self._cancelled:
                self._cancelled = False
                raise Cancelled

    def cancel(self) -> bool:
        """Stop the work that runs; False when none does."""
        with self._lock:
            self._cancelled = self._now is not None
            return self._cancelled

    def end(self) -> None:
        """The work is over, whatever came of it."""
        with self._lock:
            self._now = None
            self._cancelled = False

    @property
    def status(self) -> dict[str, Any]:
        """As JSON: phase, done, total and the estimated seconds left; empty when nothing runs."""
        with self._lock:
            if self._now is None:
                return {}
            phase, done, total = self._now
            passed = time.monotonic() - self._began
        left = passed * (total - done) / done if done else None
        return {"phase": phase, "done": done, "total": total, "eta_s": None if left is None else round(left, 1)}
