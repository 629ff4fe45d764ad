from __future__ import annotations

import numpy as np

from ssmsam.cache import Cache
from ssmsam.embeddings.embedder import half_bytes


def a_half(size: int) -> dict[str, np.ndarray]:
    return {"image": np.zeros(size, np.float16)}


def memory_of(limit: int) -> Cache[tuple[str, int], dict[str, np.ndarray]]:
    return Cache(limit, size=half_bytes)


def test_the_least_recently_used_slice_is_forgotten() -> None:
    memory = memory_of(6 * 2)
    memory.put(("volume", 0), a_half(2))
    memory.put(("volume", 1), a_half(2))
    memory.put(("another", 0), a_half(2))
    memory.get(("volume", 0))
    memory.put(("another", 1), a_half(2))
    kept = [(digest, index) for digest in ("volume", "another") for index in (0, 1) if (digest, index) in memory]
    assert kept == [("volume", 0), ("another", 0), ("another", 1)]


def test_putting_a_slice_again_counts_once() -> None:
    memory = memory_of(6 * 2)
    for _ in range(5):
        memory.put(("volume", 0), a_half(4))
    memory.put(("volume", 1), a_half(2))
    assert ("volume", 0) in memory
    memory.put(("volume", 2), a_half(7))
    assert memory.get(("volume", 2)) is None
