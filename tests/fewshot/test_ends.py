"""Where an object ends along the slices of a volume."""

from __future__ import annotations

import numpy as np
import pytest

from ssmsam.fewshot.ends import EndsConfig, beyond_the_ends, object_at, one_object

SURE = np.array([0.1, 0.2, 0.9, 0.3, 0.3, 0.2, 0.2, 0.2])


def disc(row: int, column: int, radius: int) -> np.ndarray:
    rows, columns = np.indices((32, 32))
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_the_object_with_most_evidence_is_followed_and_its_neighbours_are_not() -> None:
    masks = np.stack([disc(9, 9, radius) for radius in (0, 3, 6, 6, 5, 4, 3, 2)])
    alone = masks.copy()
    masks[4:] |= disc(24, 24, 6)  # beside it
    masks[7] = disc(14, 14, 12)  # swallows it
    found = one_object(masks, SURE, EndsConfig())
    np.testing.assert_array_equal(found[1:7], alone[1:7])
    assert not found[7].any()


def test_an_object_ends_where_a_slice_is_empty() -> None:
    masks = np.stack([disc(9, 9, 5)] * 8)
    masks[4] = False
    found = one_object(masks, SURE, EndsConfig())
    assert found.any(axis=(1, 2)).tolist() == [True] * 4 + [False] * 4


def test_nothing_is_added_and_nothing_comes_of_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = rng.random((8, 32, 32)) < rng.uniform(0.1, 0.7)
        assert not (one_object(masks, rng.random(8), EndsConfig()) & ~masks).any()
    assert not one_object(np.zeros((8, 32, 32), bool), SURE, EndsConfig()).any()


def test_beside_something_larger_on_the_same_slices_an_object_is_found_by_its_place() -> None:
    small = np.stack([disc(9, 9, radius) for radius in (0, 2, 3, 4, 4, 3, 2, 0)])
    masks = small | np.stack([disc(23, 23, 7)] * 8)
    place = np.stack([disc(8, 10, 3)] * 8)
    alone = object_at(masks, place, EndsConfig())
    np.testing.assert_array_equal(alone[1:7], small[1:7])
    assert not (one_object(masks, SURE, EndsConfig(), candidates=5) & small).any(), "on no slice it is the largest"
    there = one_object(masks, SURE, EndsConfig(), more=[(alone, 0.8)], plausibility=lambda found: -found[0].sum())
    np.testing.assert_array_equal(there, alone)
    assert not object_at(masks, np.stack([disc(28, 4, 2)] * 8), EndsConfig()).any()


def test_which_way_a_volume_is_stored_does_not_matter() -> None:
    masks = np.stack([disc(9, 9, radius) | disc(22, 22, 8 - radius) for radius in (1, 2, 4, 5, 6, 5, 4, 2)])
    found = one_object(masks, SURE, EndsConfig())
    assert found.any()
    np.testing.assert_array_equal(one_object(masks[::-1], SURE[::-1], EndsConfig())[::-1], found)


@pytest.mark.parametrize("upwards", [True, False])
def test_past_the_annotated_slices_a_jump_to_a_neighbour_ends_the_organ(upwards: bool) -> None:
    masks = np.zeros((8, 32, 32), dtype=bool)
    masks[2:5, 8:18, 8:18] = True
    masks[5:7, 2:26, 2:26] = True  # suddenly much larger, though it holds the mask before
    sure = np.zeros(8, dtype=bool)
    sure[2:4] = True
    found = beyond_the_ends(masks[::1] if upwards else masks[::-1], sure if upwards else sure[::-1], EndsConfig())
    assert sorted(found) == ([0, 1, 5, 6, 7] if upwards else [0, 1, 2, 6, 7])


def test_a_shrinking_organ_is_followed_to_its_tip_and_a_volume_without_annotations_has_no_ends() -> None:
    masks = np.zeros((6, 32, 32), dtype=bool)
    for row, half in enumerate((9, 8, 7, 6, 4, 3)):
        masks[row, 16 - half : 16 + half, 16 - half : 16 + half] = True
    first = np.arange(6) == 0
    assert beyond_the_ends(masks, first, EndsConfig()) == []
    assert beyond_the_ends(masks[[0, 5, 0, 5, 0, 5]], ~first & False, EndsConfig()) == []
