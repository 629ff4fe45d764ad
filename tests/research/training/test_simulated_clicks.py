"""Simulated users click where a user would."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.models.prompt_small import PointKind
from ssmsam_research.training.prompt_episodes import SparsePrompts, click_inside, correction, draw_box, to_input


def disc(x, y, radius, side=48):
    rows, columns = np.mgrid[:side, :side]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 7), st.integers(0, 10**6))
def test_a_click_lies_in_the_area(x, y, radius, seed):
    area = disc(x, y, radius)
    click = click_inside(area, np.random.default_rng(seed))
    column, row = np.rint(click).astype(int)
    assert area[row, column]


@given(st.integers(0, 10**6))
def test_a_correction_names_the_larger_error(seed):
    rng = np.random.default_rng(seed)
    truth = disc(20, 20, 8)
    position, kind = correction(truth, truth & ~disc(23, 20, 3), rng)
    assert kind == PointKind.POSITIVE
    assert np.hypot(*(position - (23, 20))) < 4.5
    position, kind = correction(truth, truth | disc(38, 38, 4), rng)
    assert kind == PointKind.NEGATIVE
    assert np.hypot(*(position - (38, 38))) < 5.5


def test_nothing_to_correct():
    assert correction(disc(9, 9, 3), disc(9, 9, 3), np.random.default_rng(0)) is None
    assert click_inside(np.zeros((8, 8), bool), np.random.default_rng(0)) is None


@given(st.integers(0, 10**6))
def test_a_box_is_near_its_target(seed):
    corners = draw_box(disc(24, 20, 6), np.random.default_rng(seed))
    np.testing.assert_allclose(corners, [[18, 14], [30, 26]], atol=3)


def test_points_are_padded_and_in_input_pixels():
    sparse = SparsePrompts(2, 4)
    sparse.add(1, np.array([3.0, 5.0]), PointKind.POSITIVE)
    assert sparse.points[1, 0].tolist() == to_input(np.array([3.0, 5.0])).tolist() == [6.5, 10.5]
    assert sparse.kinds.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
