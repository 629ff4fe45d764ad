"""The slices that were used last, in memory."""

from __future__ import annotations

from ssmsam.cache import Cache
from ssmsam.encoders.half import Half, half_bytes


class SliceMemory:
    """Embeddings of slices by (volume's key digest, slice index), the least recently used forgotten first."""

    def __init__(self, limit_bytes: int) -> None:
        self._halves: Cache[tuple[str, int], Half] = Cache(limit_bytes, size=half_bytes)

    def get(self, digest: str, index: int) -> Half | None:
        return self._halves.get((digest, index))

    def put(self, digest: str, index: int, half: Half) -> None:
        self._halves.put((digest, index), half)

    def holds(self, digest: str, index: int) -> bool:
        """Whether the slice is there; does not count as a use."""
        return (digest, index) in self._halves
