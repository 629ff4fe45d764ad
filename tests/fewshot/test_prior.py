"""Shape interpolation as a prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as shaped

from ssmsam.fewshot.config import PRIOR_REACH
from ssmsam.fewshot.support_bank import interpolated, signed_distance
from ssmsam.models.prompt_small import CLOSENESS_MM, closeness

SHAPE = (24, 24)
masks = shaped.arrays(bool, (9, 11))
shares = st.floats(0, 1)
places = st.floats(-500, 500).map(lambda z: round(z, 3))


def disc(radius: float, centre: tuple[float, float] = (12, 12)) -> np.ndarray:
    y, x = np.indices(SHAPE)
    return np.hypot(y - centre[0], x - centre[1]) < radius


@given(masks)
def test_distances_are_positive_inside_and_bounded(mask: np.ndarray) -> None:
    distance = signed_distance(mask)
    np.testing.assert_array_equal(distance > 0, mask)
    assert np.abs(distance).max() <= PRIOR_REACH
    if mask.any() and not mask.all():
        assert np.abs(distance).min() == 0.5, "the border runs between pixels"


@given(masks, places, places, shares)
def test_between_two_equal_slices_lies_the_same_mask(mask: np.ndarray, a: float, b: float, share: float) -> None:
    position = a + share * (b - a)
    known = {a: signed_distance(mask), b: signed_distance(mask)}
    prior = interpolated(known, position, mask.shape)
    np.testing.assert_array_equal(prior.distance > 0, mask)
    if min(a, b) <= position <= max(a, b):
        assert prior.between == 1


@given(masks, masks, shares)
def test_the_direction_in_which_slices_are_counted_does_not_matter(
    one: np.ndarray, other: np.ndarray, share: float
) -> None:
    first, second = signed_distance(one), signed_distance(other)
    forth = interpolated({10.0: first, 30.0: second}, 10 + 20 * share, one.shape)
    back = interpolated({-10.0: first, -30.0: second}, -(10 + 20 * share), one.shape)
    np.testing.assert_allclose(forth.distance, back.distance, atol=1e-4)
    assert forth.closeness == pytest.approx(back.closeness)
    assert forth.between == back.between == 1


def test_what_both_sides_agree_on_is_told() -> None:
    wide, narrow = signed_distance(disc(8)), signed_distance(disc(4))
    assert interpolated({0.0: wide, 10.0: wide}, 5.0, SHAPE).agreement == 1
    assert 0.2 < interpolated({0.0: wide, 10.0: narrow}, 5.0, SHAPE).agreement < 0.6
    assert interpolated({0.0: wide}, 5.0, SHAPE).agreement == 0, "nothing is known of the other side"


def test_an_annotated_slice_is_met_as_it_is() -> None:
    known = {0.0: signed_distance(disc(8)), 10.0: signed_distance(disc(3))}
    prior = interpolated(known, 10.0, SHAPE)
    np.testing.assert_array_equal(prior.distance, known[10.0])
    assert (prior.between, prior.closeness) == (1.0, 1.0)


def test_an_empty_slice_pulls_to_the_outside() -> None:
    known = {0.0: signed_distance(disc(8)), 10.0: signed_distance(disc(0))}
    areas = [int((interpolated(known, z, SHAPE).distance > 0).sum()) for z in np.linspace(0, 10, 6)]
    assert areas[0] == disc(8).sum()
    assert areas[-1] == 0
    assert areas == sorted(areas, reverse=True)
    assert len(set(areas)) > 2, "it shrinks on the way, not at once"


def test_beyond_the_last_slice_trust_fades() -> None:
    known = {5.0: signed_distance(disc(6)), 10.0: signed_distance(disc(4))}
    beyond = interpolated(known, 10.0 + CLOSENESS_MM, SHAPE)
    np.testing.assert_array_equal(beyond.distance, known[10.0])
    assert beyond.between == 0
    assert beyond.closeness == pytest.approx(np.exp(-1))
    assert closeness(-3) == closeness(3) < closeness(0) == 1


def test_without_slices_nothing_is_said() -> None:
    prior = interpolated({}, 3.0, SHAPE)
    assert not prior.distance.any()
    assert prior.distance.shape == SHAPE
    assert (prior.between, prior.closeness) == (0.0, 0.0)
