"""Answers that are kept, so that nothing is computed twice while nothing has changed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ssmsam.cache import Cache

MEMORY_BYTES = 64 * 2**20
"""A guess: hundreds of packed answers."""
_QUICK = 1
"""The level of compression: masks are mostly background and shrink hundredfold at any."""


@dataclass(frozen=True, eq=False)
class Answer:
    """``mask`` (slices, rows, columns) uint8 holds 1, 2, ... for the ``labels``. Of each label ``uncertain`` slices are
    named, the worst first, and ``asked``: slices just past its annotated ends, of which it is asked whether it is still
    there; ``expected`` is the Dice in [0, 1] that is expected of it on slices that nobody annotated, in all, and
    ``slice_dice`` that on each of them that has a mask."""

    labels: tuple[str, ...]
    mask: np.ndarray
    uncertain: Mapping[str, list[int]]
    asked: Mapping[str, list[int]]
    expected: Mapping[str, float] = field(default_factory=dict)
    slice_dice: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


class AnswerMemory:
    """The answers that were given last, within a limit of bytes. The key has to hold everything that they depend on.
    Safe for threads."""

    def __init__(self) -> None:
        self._kept: Cache[Hashable, tuple[Answer, bytes]] = Cache(
            MEMORY_BYTES, size=lambda kept: len(kept[1]), keep_newest=True
        )

    def clear(self) -> None:
        """Forget all answers."""
        self._kept.clear()

    def recalled(self, key: Hashable, make: Callable[[], Answer]) -> tuple[Answer, bool]:
        """The answer, and whether it was known; several who ask at once wait for the one who makes it."""
        made: list[Answer] = []

        def packed() -> tuple[Answer, bytes]:
            made.append(make())
            mask = made[0].mask
            data = zlib.compress(np.ascontiguousarray(mask, dtype=np.uint8).tobytes(), _QUICK)
            return replace(made[0], mask=np.broadcast_to(np.uint8(0), mask.shape)), data

        answer, data = self._kept.recalled(key, packed)
        if made:
            return made[0], False
        return replace(answer, mask=np.frombuffer(zlib.decompress(data), np.uint8).reshape(answer.mask.shape)), True
