"""Objects among the masks of a volume."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmsam.fewshot.selection import objects

SIDE = 12


def masks(*pieces: tuple[range, int, int]) -> np.ndarray:
    """(8, SIDE, SIDE): squares of three cells on some slices, by the row and the column of their corner."""
    found = np.zeros((8, SIDE, SIDE), dtype=bool)
    for slices, row, column in pieces:
        found[list(slices), row : row + 3, column : column + 3] = True
    return found


NOTHING = np.zeros((8, SIDE, SIDE), dtype=bool)


def test_of_two_objects_the_one_with_more_evidence_is_first() -> None:
    left, right = masks((range(1, 4), 2, 1)), masks((range(3, 7), 6, 8))
    evidence = np.array([0, 0.5, 0.5, 0.6, 0.9, 0.6, 0.6, 0])
    first, second = objects(left | right, evidence, NOTHING, most=4)
    np.testing.assert_array_equal(first, right)
    np.testing.assert_array_equal(second, left)
    (only,) = objects(left | right, evidence, NOTHING, most=1)
    np.testing.assert_array_equal(only, right)


def test_what_hangs_together_with_an_annotated_mask_comes_first() -> None:
    left, right = masks((range(1, 6), 2, 1)), masks((range(0, 7), 6, 8))
    anchors = NOTHING.copy()
    anchors[3] = left[3]
    first, second = objects(left | right, np.full(8, 0.9), anchors, most=4)
    np.testing.assert_array_equal(first, left)
    np.testing.assert_array_equal(second, right)


def test_an_object_ends_where_nothing_overlaps_with_it() -> None:
    broken = masks((range(0, 2), 2, 1), (range(3, 5), 2, 1), (range(5, 8), 6, 8))
    found = objects(broken, np.linspace(0.1, 0.8, 8), NOTHING, most=8)
    assert [np.flatnonzero(one.any(axis=(1, 2))).tolist() for one in found] == [[5, 6, 7], [3, 4], [0, 1]]


def test_without_masks_or_evidence_there_is_none() -> None:
    assert objects(NOTHING, np.ones(8), NOTHING, most=4) == []
    assert objects(masks((range(2), 0, 0)), np.zeros(8), NOTHING, most=4) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.6), st.integers(1, 5))
def test_objects_are_made_of_what_was_proposed_or_annotated(seed: int, share: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    proposed = rng.random((6, 8, 8)) < share
    anchors = np.zeros_like(proposed)
    if rng.random() < 0.5:
        anchors[rng.integers(6), 2:4, 2:4] = True
    found = objects(proposed, rng.random(6), anchors, most=most)
    assert len(found) <= most
    for one in found:
        assert one.any()
        assert not (one & ~(proposed | anchors)).any()
    if anchors.any():
        assert (found[0] >= anchors).all()
