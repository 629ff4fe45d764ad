"""Masks and even spacing: what every package needs of them, each in one place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage


def signed_distance(mask: np.ndarray, *, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Distance to the nearest element on the other side of the border, positive inside the mask, negative outside.

    Args:
        mask: Any number of axes, bool.
        spacing: Millimetres per element along each axis. Without it distances count elements.

    Returns:
        float64 of the mask's shape. Nowhere 0: beside the border it is one element in size.

    Example:
        >>> signed_distance(np.array([False, True, True, False]))
        array([-1.,  1.,  1., -1.])
    """
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    return np.asarray(inside - ndimage.distance_transform_edt(~mask, sampling=spacing))


def dice(
    one: np.ndarray,
    other: np.ndarray,
    *,
    axis: tuple[int, ...] | None = None,
    both_empty: float = 1.0,
    scale: float = 1.0,
) -> np.ndarray:
    """Dice coefficient of bool masks, in [0, ``scale``].

    Args:
        one, other: Masks whose shapes broadcast.
        axis: The axes of one mask; all of them by default.
        both_empty: What two empty masks are worth, in [0, 1].
        scale: 100 for per cent.

    Returns:
        float64 over the axes that are left: no axis, a single number, unless ``axis`` is given.

    Example:
        >>> float(dice(np.array([True, True, False]), np.array([True, False, False])))
        0.6666666666666666
    """
    total = np.asarray(one.sum(axis=axis) + other.sum(axis=axis))
    common = (one & other).sum(axis=axis)
    return np.where(total == 0, scale * both_empty, 2 * scale * common / np.maximum(total, 1))


def components(mask: np.ndarray, *, corners: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The connected pieces of a mask.

    Args:
        mask: Any number of axes, bool.
        corners: Whether elements that share no more than a corner are connected.

    Returns:
        Labels of the mask's shape, 0 outside and 1, 2, ... for the pieces; and the number of elements of each label,
        0 for label 0.
    """
    structure = ndimage.generate_binary_structure(mask.ndim, mask.ndim if corners else 1)
    labels, count = ndimage.label(mask, structure=structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask that is not empty, the first of equal ones; bool."""
    labels, sizes = components(mask)
    return np.asarray(labels == sizes.argmax())


def touching(mask: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """The connected pieces of a mask that overlap with ``anchor``, a mask of the same shape; bool."""
    labels, sizes = components(mask)
    touched = np.zeros(len(sizes), dtype=bool)
    touched[labels[anchor & mask]] = True
    return touched[labels]


def evenly_spaced(count: int, most: int) -> list[int]:
    """Positions of at most ``most`` of ``count`` elements, about equally far apart, with the first and the last.

    Example:
        >>> evenly_spaced(9, 3)
        [0, 4, 8]
        >>> evenly_spaced(2, 3)
        [0, 1]
    """
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


@dataclass(frozen=True)
class PackedMask:
    """A mask (height, width) at one bit per pixel."""

    shape: tuple[int, int]
    bits: bytes

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """Pack a mask (height, width): true where it is not zero. Raises ValueError for another number of axes."""
        if mask.ndim != 2:
            raise ValueError(f"a slice's mask has two axes (height, width), got shape {mask.shape}")
        shape = (int(mask.shape[0]), int(mask.shape[1]))
        return cls(shape, np.packbits(mask != 0).tobytes() if mask.any() else _no_bits(-(-mask.size // 8)))

    @property
    def array(self) -> np.ndarray:
        """The mask, (height, width) bool."""
        count = self.shape[0] * self.shape[1]
        bits = np.frombuffer(self.bits, dtype=np.uint8)
        return np.unpackbits(bits, count=count).reshape(self.shape).astype(bool)

    @property
    def empty(self) -> bool:
        """Whether no pixel is set."""
        return not self.bits.strip(b"\0")

    @property
    def digest(self) -> str:
        """sha256 over shape and pixels."""
        return hashlib.sha256(repr(self.shape).encode() + self.bits).hexdigest()


@lru_cache(maxsize=64)
def _no_bits(count: int) -> bytes:
    """Zeros, the same object for every empty mask of a size: most slices of a finished volume are empty."""
    return bytes(count)
