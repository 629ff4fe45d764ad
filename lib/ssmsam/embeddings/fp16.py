"""Embeddings as they are kept, in memory and on disk: one slice, half precision, on the CPU."""

from __future__ import annotations

import logging

import numpy as np
import torch

from ssmsam.cache import Cache
from ssmsam.models.encoder import Embedding

logger = logging.getLogger(__name__)

Fp16Embedding = dict[str, np.ndarray]
"""Of one slice: "image" (c, h, w) and "level0", "level1", ... (c_l, h_l, w_l), all float16."""

LARGEST = float(np.finfo(np.float16).max)


def to_halves(embedding: Embedding) -> list[Fp16Embedding]:
    """A batch of B -> B slices.

    Values beyond +-65504, the range of float16, are cut to it with a warning: no encoder here comes near. Raises
    ValueError for infinities and not-a-number, which mean that weights or input are broken.
    """
    tensors = {"image": embedding["image"]} | {f"level{i}": level for i, level in enumerate(embedding["levels"])}
    arrays = {name: _to_half(name, tensor) for name, tensor in tensors.items()}
    # copies, for a view would keep the whole batch in memory
    return [{name: array[i].copy() for name, array in arrays.items()} for i in range(len(embedding["image"]))]


def to_embedding(half: Fp16Embedding, device: torch.device) -> Embedding:
    """One slice -> a batch of 1, float32, on ``device``."""
    tensors = [torch.from_numpy(array).to(device, torch.float32)[None] for array in _in_order(half)]
    return {"image": tensors[0], "levels": tensors[1:]}


def without_last(half: Fp16Embedding, count: int) -> Fp16Embedding:
    """A slice without the last ``count`` of its levels."""
    levels = len(half) - 1
    return {"image": half["image"]} | {f"level{i}": half[f"level{i}"] for i in range(levels - count)}


def with_more(half: Fp16Embedding, levels: list[torch.Tensor]) -> Fp16Embedding:
    """A slice with further levels, each a batch of 1."""
    first = len(half) - 1
    return half | {f"level{first + i}": _to_half(f"level{first + i}", one)[0] for i, one in enumerate(levels)}


def half_bytes(half: Fp16Embedding) -> int:
    """Bytes that a slice takes."""
    return sum(array.nbytes for array in half.values())


def _in_order(half: Fp16Embedding) -> list[np.ndarray]:
    return [half["image"], *(half[f"level{i}"] for i in range(len(half) - 1))]


def _to_half(name: str, tensor: torch.Tensor) -> np.ndarray:
    largest = float(tensor.abs().max())
    if not np.isfinite(largest):
        raise ValueError(f"the encoder gave infinite or not-a-number values in {name}: are its weights whole?")
    if largest > LARGEST:
        logger.warning("embedding %s reaches %g: cut to the float16 range of %g", name, largest, LARGEST)
        tensor = tensor.clamp(-LARGEST, LARGEST)
    return tensor.to("cpu", torch.float16).contiguous().numpy()


class SliceCache:
    """Embeddings of slices by (volume's key digest, slice index), the least recently used forgotten first."""

    def __init__(self, limit_bytes: int) -> None:
        self._halves: Cache[tuple[str, int], Fp16Embedding] = Cache(limit_bytes, size=half_bytes)

    def get(self, digest: str, index: int) -> Fp16Embedding | None:
        return self._halves.get((digest, index))

    def put(self, digest: str, index: int, half: Fp16Embedding) -> None:
        self._halves.put((digest, index), half)

    def holds(self, digest: str, index: int) -> bool:
        """Whether the slice is there; does not count as a use."""
        return (digest, index) in self._halves
