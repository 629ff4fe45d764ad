"""A small volume, masks on it, and submissions of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ssmsam.annotation.annotations import Annotations, SliceAnnotation, SliceKey, Source, Update
from ssmsam.annotation.interpretation import Submission
from ssmsam.ops import PackedMask
from ssmsam.volume.volume import Grid, Volume

SHAPE = (8, 5, 6)
AFFINE = np.diag([0.8, 0.8, 3.0, 1.0])
GRID = Grid(SHAPE, AFFINE)
LABELS = ("liver", "spleen")


def drawn(*slices: int, value: int = 1, array: np.ndarray | None = None) -> np.ndarray:
    """A mask with a small square of ``value`` on some slices."""
    array = np.zeros(SHAPE, np.uint8) if array is None else array.copy()
    for index in slices:
        array[index, 1:3, 1:4] = value
    return array


def submission(array: np.ndarray, labels: tuple[str, ...] = ("liver",), **params: Any) -> Submission:
    info = [{"name": name, "idx": number} for number, name in enumerate(labels, start=1)]
    return Submission(Volume(array, AFFINE), {"label_info": info, "client_id": "reader", **params}, "2026-01-02")


def sources(update: Update, label: str = "liver", axis: int = 0) -> Mapping[int, str]:
    """Slice -> why it counts, of one label."""
    return {
        key.index: entry.source.value for key, entry in update.entries.items() if (key.label, key.axis) == (label, axis)
    }


def empty() -> Annotations:
    return Annotations(GRID)


def masks(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Empty, full and scattered masks."""
    return st.integers(0, 5).map(lambda seed: np.random.default_rng(seed).random(shape) < seed / 5)


@st.composite
def keys(draw: st.DrawFn) -> SliceKey:
    axis = draw(st.integers(0, 2))
    return SliceKey(draw(st.sampled_from(LABELS)), axis, draw(st.integers(0, SHAPE[axis] - 1)))


@st.composite
def updates(draw: st.DrawFn, excluded: frozenset[SliceKey] = frozenset()) -> Update:
    """Any update that leaves some slices alone."""
    entries = {}
    for key in draw(st.sets(keys(), max_size=3)) - excluded:
        shape = key.plane.slice_shape(GRID)
        known = draw(st.none() | masks(shape))
        entries[key] = SliceAnnotation(
            PackedMask.of(draw(masks(shape)) & (True if known is None else known)),
            draw(st.sampled_from(Source)),
            draw(st.sampled_from(["", "reader", "user-xyz"])),
            draw(st.sampled_from(["2026-01-02", "2026-01-03"])),
            None if known is None else PackedMask.of(known),
        )
    return Update(
        GRID,
        entries,
        frozenset(draw(st.sets(keys(), max_size=3))),
        frozenset(draw(st.sets(st.sampled_from(LABELS)))),
        frozenset({key.label for key in entries}),
        notes=tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
    )
