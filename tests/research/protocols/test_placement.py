import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.volume.volume import Volume
from ssmsam_research.protocols.fewshot_task import (
    evenly,
    extent_of,
    in_middles,
    middles,
    same_direction,
    split,
    with_ends,
    without_ends,
)


def organ(slices, count=40):
    truth = np.zeros((count, 4, 4), dtype=bool)
    truth[list(slices), 1:3, 1:3] = True
    return truth


def test_slices_with_and_without_the_ends():
    truth = organ(range(10, 31))
    assert extent_of(truth) == range(10, 31)
    assert with_ends(truth, 3) == [10, 20, 30]
    assert with_ends(truth, 5) == [10, 15, 20, 25, 30]
    assert without_ends(truth, 3) == [12, 20, 28]
    assert without_ends(truth, 5) == [12, 16, 20, 24, 28]
    assert without_ends(truth, 9) == [12, 14, 16, 18, 20, 22, 24, 26, 28]


def test_a_short_organ_is_annotated_whole():
    assert with_ends(organ(range(7, 9)), 5) == [7, 8]
    with pytest.raises(ValueError, match="no extent"):
        extent_of(organ([]))


def test_thirds_and_their_middles():
    assert split(range(10, 19), 3) == [range(10, 13), range(13, 16), range(16, 19)]
    assert middles(organ(range(10, 19)), 3) == [11, 14, 17]
    assert in_middles(organ(range(10, 20)), 1) == [15]
    assert split(range(5, 6), 3) == [range(5, 5), range(5, 6), range(6, 6)]
    assert middles(organ([5]), 3) == [5, 5, 5]


def test_a_middle_that_falls_into_a_gap_goes_to_the_nearest_slice_of_the_organ():
    assert middles(organ([10, 11, 12, 16, 17, 18]), 3) == [11, 12, 17]


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 5))
def test_parts_cover_the_extent_once(start, length, parts):
    pieces = split(range(start, start + length), parts)
    assert [index for piece in pieces for index in piece] == list(range(start, start + length))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(st.integers(1, 40), st.data())
def test_even_positions_are_different_and_inside(count, data):
    wanted = data.draw(st.integers(1, count))
    places = evenly(count, wanted)
    assert len(set(places)) == wanted and min(places) >= 0 and max(places) < count


def test_direction_through_the_body():
    array = np.zeros((2, 2, 2))
    up, down = (Volume(array, np.diag([1.0, 1.0, z, 1.0])) for z in (3.0, -3.0))
    assert same_direction(up, up)
    assert not same_direction(up, down)
