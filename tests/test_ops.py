from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

from ssmsam import ops
from ssmsam.files import whole_file
from ssmsam.ops import PackedMask, components, dice, evenly_spaced, largest_component, signed_distance, touching


def test_the_examples_are_true() -> None:
    assert doctest.testmod(ops).failed == 0


def test_distances_have_a_sign_and_a_unit() -> None:
    mask = np.zeros((3, 5), dtype=bool)
    mask[:, 2:] = True
    assert np.array_equal(signed_distance(mask)[1], [-2, -1, 1, 2, 3])
    assert np.array_equal(signed_distance(mask, spacing=(1.0, 0.5))[1], [-1, -0.5, 0.5, 1, 1.5])


def test_dice_over_all_or_over_the_axes_of_a_mask() -> None:
    one = np.array([[[True, True]], [[False, False]]])
    other = np.array([[[True, False]], [[False, False]]])
    assert dice(one, other) == pytest.approx(2 / 3)
    assert np.allclose(dice(one, other, axis=(1, 2), both_empty=0.0), [2 / 3, 0])
    assert dice(one[1], other[1], scale=100) == 100


def test_pieces_touch_at_corners_and_are_found_by_size_and_by_overlap() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[5, 5] = True
    labels, sizes = components(mask)
    assert sizes.tolist() == [0, 2, 1] and labels[1, 1] == labels[0, 0] != labels[5, 5]
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0], [1, 1]]
    anchor = np.zeros_like(mask)
    anchor[5, 4:] = True
    assert np.argwhere(touching(mask, anchor)).tolist() == [[5, 5]]
    assert not touching(mask, np.zeros_like(mask)).any()


@pytest.mark.parametrize(("count", "most"), [(1, 1), (5, 2), (100, 16), (7, 30), (0, 3), (4, 0)])
def test_evenly_spaced_positions_differ_and_hold_both_ends(count: int, most: int) -> None:
    found = evenly_spaced(count, most)
    assert len(set(found)) == len(found) == min(count, most)
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, count - 1)
        assert np.ptp(np.diff(found)) <= 1


def test_a_packed_mask_is_what_was_packed() -> None:
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    assert np.array_equal(PackedMask.of(mask).array, mask)
    assert PackedMask.of(mask * 0).empty and not PackedMask.of(mask).empty
    with pytest.raises(ValueError, match="two axes"):
        PackedMask.of(mask[None])


def test_a_file_that_is_broken_off_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")

    def break_off() -> None:
        with whole_file(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["result.txt"]
