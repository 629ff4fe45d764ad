"""Masks of some slices of a volume, in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import numpy as np


class SliceMasks(MutableMapping[int, np.ndarray]):
    """Slice number -> mask (height, width) bool, kept at one bit per pixel. Slices are in ascending order."""

    def __init__(self, masks: Mapping[int, np.ndarray] | None = None) -> None:
        self._packed: dict[int, tuple[tuple[int, int], np.ndarray]] = {}
        self.update(masks or {})

    def __getitem__(self, index: int) -> np.ndarray:
        shape, bits = self._packed[index]
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)

    def __setitem__(self, index: int, mask: np.ndarray) -> None:
        if mask.ndim != 2:
            raise ValueError(f"a slice's mask has two axes (height, width), got shape {mask.shape}")
        self._packed[int(index)] = (mask.shape[0], mask.shape[1]), np.packbits(mask != 0)

    def __delitem__(self, index: int) -> None:
        del self._packed[index]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._packed))

    def __len__(self) -> int:
        return len(self._packed)
