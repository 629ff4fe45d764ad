"""Images that cannot be read, each with its reason, so that nobody waits for them and everybody is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

RETRY_S = 60.0
"""After so many seconds an image of a remote store is tried again; of a file it is seen when it changes. A guess."""
MOST = 10_000
"""Images that are remembered, at most; those set aside first are forgotten first."""


@dataclass(frozen=True)
class Refusal:
    """Why an image was set aside, in a sentence with the next step, and since when (seconds since 1970).

    ``state`` is what the image was then: a refusal counts as long as it is the same. None counts for :data:`RETRY_S`.
    """

    reason: str
    state: Hashable
    since: float


class SetAside:
    """The images that could not be read. Safe for threads.

    Args:
        state: image id -> what changes when the image does (time and size of its file), None where that cannot be told
            without fetching it. It has to be quick and must not raise.

    Example:
        >>> aside = SetAside(lambda image: 1)
        >>> aside.note("case07", "case07: the header is damaged: export it again.")
        >>> aside.reason("case07")
        'case07: the header is damaged: export it again.'
        >>> aside.reason("case08")
        ''
    """

    def __init__(self, state: Callable[[str], Hashable], *, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._refusals: dict[str, Refusal] = {}
        self._lock = threading.Lock()

    def note(self, image: str, reason: str) -> None:
        """An image could not be read just now."""
        refusal = Refusal(reason, self._state(image), self._clock())
        with self._lock:
            self._refusals.pop(image, None)
            self._refusals[image] = refusal
            while len(self._refusals) > MOST:
                self._refusals.pop(next(iter(self._refusals)))

    def clear(self, image: str) -> None:
        """An image was read."""
        with self._lock:
            self._refusals.pop(image, None)

    def reason(self, image: str) -> str:
        """Why an image is set aside; "" for one that is not, or that changed since and may be tried again."""
        refusal = self._refusals.get(image)
        if refusal is None:
            return ""
        known, age_s = refusal.state, self._clock() - refusal.since
        counts = age_s < RETRY_S if known is None else self._state(image) == known
        if counts:
            return refusal.reason
        with self._lock:
            if self._refusals.get(image) is refusal:
                del self._refusals[image]
        return ""

    def as_json(self) -> list[dict[str, Any]]:
        """``image``, ``reason`` and ``since`` (seconds since 1970) of each, the newest first."""
        listed = [(image, refusal) for image, refusal in reversed(list(self._refusals.items())) if self.reason(image)]
        return [{"image": image, "reason": one.reason, "since": round(one.since, 1)} for image, one in listed]
