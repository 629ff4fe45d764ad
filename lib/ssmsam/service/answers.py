"""Answers that are kept, so that nothing is computed twice while nothing has changed."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

MEMORY_BYTES = 64 * 2**20
"""A guess: hundreds of packed answers."""
_QUICK = 1
"""The level of compression: masks are mostly background and shrink hundredfold at any."""


@dataclass(frozen=True, eq=False)
class Answer:
    """``mask`` (slices, rows, columns) uint8 holds 1, 2, ... for the ``labels``. Of each label ``uncertain`` slices are
    named, the worst first, and ``asked``: slices just past its annotated ends, of which it is asked whether it is still
    there; ``expected`` is the Dice in [0, 1] that is expected of it on slices that nobody annotated."""

    labels: tuple[str, ...]
    mask: np.ndarray
    uncertain: Mapping[str, list[int]]
    asked: Mapping[str, list[int]]
    expected: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Packed:
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    data: bytes
    uncertain: Mapping[str, list[int]]
    asked: Mapping[str, list[int]]
    expected: Mapping[str, float]

    def opened(self) -> Answer:
        mask = np.frombuffer(zlib.decompress(self.data), dtype=np.uint8).reshape(self.shape)
        return Answer(self.labels, mask, self.uncertain, self.asked, self.expected)


class AnswerMemory:
    """The answers that were given last, within a limit of bytes. The key has to hold everything that they depend on.
    Safe for threads."""

    def __init__(self, limit_bytes: int = MEMORY_BYTES) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Hashable, _Packed] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all answers."""
        with self._lock:
            self._kept.clear()

    def get(self, key: Hashable) -> Answer | None:
        """The answer, whose mask cannot be written to."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
        return found.opened()

    def put(self, key: Hashable, answer: Answer) -> None:
        data = zlib.compress(np.ascontiguousarray(answer.mask, dtype=np.uint8).tobytes(), _QUICK)
        with self._lock:
            self._kept[key] = _Packed(
                answer.labels, answer.mask.shape, data, answer.uncertain, answer.asked, answer.expected
            )
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(len(one.data) for one in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
