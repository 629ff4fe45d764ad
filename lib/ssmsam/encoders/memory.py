"""The slices that were used last, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ssmsam.encoders.half import Half, half_bytes


class SliceMemory:
    """Embeddings of slices by (volume's key digest, slice index), the least recently used forgotten first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._halves: OrderedDict[tuple[str, int], Half] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str, index: int) -> Half | None:
        with self._lock:
            half = self._halves.get((digest, index))
            if half is not None:
                self._halves.move_to_end((digest, index))
            return half

    def put(self, digest: str, index: int, half: Half) -> None:
        with self._lock:
            before = self._halves.pop((digest, index), {})
            self._halves[digest, index] = half
            self._bytes += half_bytes(half) - half_bytes(before)
            while self._bytes > self._limit and self._halves:
                self._bytes -= half_bytes(self._halves.popitem(last=False)[1])

    def holds(self, digest: str, index: int) -> bool:
        """Whether the slice is there; does not count as a use."""
        with self._lock:
            return (digest, index) in self._halves
