"""How long work tells what it is doing, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(phase, done, total)``. Raise :class:`Cancelled` inside it to stop the work cleanly."""


class Cancelled(Exception):
    """The user stopped the work. Not an error: what was finished before stays."""


def silent(phase: str, done: int, total: int) -> None:
    """A progress callback that tells nobody."""
