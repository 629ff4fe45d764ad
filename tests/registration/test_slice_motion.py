"""What was drawn on one slice is carried to others along the anatomy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from ssmsam.ops import dice
from ssmsam.registration.slices import SIDE, SliceMotion, both_ways

PLACES = np.arange(5) * 3.0
"""Where five slices are, in mm."""


def disc(x: float, radius: float = 18.0) -> np.ndarray:
    rows, columns = np.mgrid[: 2 * SIDE, : 2 * SIDE]
    return np.hypot(rows - 60.0, columns - x) < radius


def anatomy(x: float) -> np.ndarray:
    """A bright organ in a still body."""
    body = disc(64, 58) * 0.4 + disc(x) * 0.4
    return gaussian_filter(body, 1.5).astype(np.float32)


def wandering() -> SliceMotion:
    """An organ that goes six cells to the right from slice to slice."""
    slices = [anatomy(45 + 6 * number) for number in range(len(PLACES))]
    return SliceMotion(PLACES, np.stack([both_ways(*slices[n : n + 2]) for n in range(len(slices) - 1)]))


MOTION = wandering()


def carried(start: float, stop: float) -> np.ndarray:
    drawn = disc(45 + 2 * start)
    signed = np.where(drawn, 1.0, -1.0)
    return MOTION.carried(signed[None], start, stop)[0] > 0


@pytest.mark.parametrize(("start", "stop"), [(0.0, 12.0), (12.0, 0.0), (3.0, 6.0), (0.0, 7.5), (12.0, 4.0)])
def test_a_mask_follows_its_organ_in_both_directions_and_between_slices(start: float, stop: float) -> None:
    there = disc(45 + 2 * stop)
    assert dice(carried(start, stop), there) > 0.93 > 0.85 > dice(disc(45 + 2 * start), there)


@given(start=st.sampled_from(list(PLACES)), sideways=st.integers(-20, 20))
def test_what_stays_where_it_is_stays_as_it_is(start: float, sideways: int) -> None:
    mask = disc(60 + sideways)
    np.testing.assert_array_equal(MOTION.carried(mask[None], start, start)[0] > 0.5, mask)


def test_in_a_still_volume_nothing_moves() -> None:
    still = anatomy(60)
    motion = SliceMotion(PLACES[:2], both_ways(still, still)[None])
    mask = disc(50).astype(np.float32)
    np.testing.assert_allclose(motion.carried(mask[None], 0.0, 3.0)[0], mask, atol=1e-3)


def test_a_slice_without_contrast_moves_nothing() -> None:
    flat = np.zeros((2 * SIDE, 2 * SIDE), dtype=np.float32)
    assert not both_ways(flat, flat).any()


def test_maps_of_any_size_are_carried_alike() -> None:
    large = carried(0.0, 12.0)
    small = MOTION.carried(np.where(disc(45), 1.0, -1.0)[None, ::2, ::2], 0.0, 12.0)[0] > 0
    assert dice(small, large[::2, ::2]) > 0.95
