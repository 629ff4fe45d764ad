from __future__ import annotations

import numpy as np

from ssmsam.embeddings.embedder import SliceCache


def a_half(size: int) -> dict[str, np.ndarray]:
    return {"image": np.zeros(size, np.float16)}


def test_the_least_recently_used_slice_is_forgotten():
    memory = SliceCache(6 * 2)
    memory.put("volume", 0, a_half(2))
    memory.put("volume", 1, a_half(2))
    memory.put("another", 0, a_half(2))
    memory.get("volume", 0)
    memory.put("another", 1, a_half(2))
    kept = [(digest, index) for digest in ("volume", "another") for index in (0, 1) if memory.holds(digest, index)]
    assert kept == [("volume", 0), ("another", 0), ("another", 1)]


def test_putting_a_slice_again_counts_once():
    memory = SliceCache(6 * 2)
    for _ in range(5):
        memory.put("volume", 0, a_half(4))
    memory.put("volume", 1, a_half(2))
    assert memory.holds("volume", 0)
    memory.put("volume", 2, a_half(7))
    assert memory.get("volume", 2) is None
