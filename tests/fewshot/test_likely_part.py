"""An object that is too long for the target is cut where the target ends."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmsam.fewshot.expectation import Expectation
from ssmsam.fewshot.likely_part import PartConfig, likely_part

CONFIG = PartConfig()
COUNT, SLICE_MM = 40, 5.0
POSITIONS = np.arange(COUNT) * SLICE_MM
SURE = np.full(COUNT, 0.8)


def rows(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask.any(axis=(1, 2))).tolist()


def organ_and_neighbour(start: int, length: int, neighbour: int, shift: int = 12) -> np.ndarray:
    """An organ of ``length`` slices and, right after it and half beside it, another of ``neighbour`` slices."""
    mask = np.zeros((COUNT, 32, 32), dtype=bool)
    mask[start : start + length, 4:16, 4:16] = True
    mask[start + length : start + length + neighbour, 4:16, 4 + shift - 4 : 16 + shift - 4] = True
    return mask


def wanted(length: int, *middles: float) -> Expectation:
    return Expectation(area_mm2=500.0, length_mm=length * SLICE_MM, middles_mm=middles)


@given(start=st.integers(0, 8), length=st.integers(8, 14), neighbour=st.integers(8, 14))
@settings(max_examples=25, deadline=None)
def test_a_neighbour_that_goes_on_from_the_organ_is_cut_off(start: int, length: int, neighbour: int) -> None:
    both = organ_and_neighbour(start, length, neighbour)
    middle = (start + (length - 1) / 2) * SLICE_MM
    part = likely_part(both, SURE, POSITIONS, wanted(length, middle), CONFIG)
    assert rows(part) == list(range(start, start + length))
    assert not (part & ~both).any()


def test_where_the_organ_lies_decides_which_of_both_it_is() -> None:
    both = organ_and_neighbour(4, 12, 12)
    for first, middle in ((4, 9.5 * SLICE_MM), (16, 21.5 * SLICE_MM)):
        part = likely_part(both, SURE, POSITIONS, wanted(12, middle), CONFIG)
        assert rows(part) == list(range(first, first + 12))


@given(length=st.integers(3, 30), factor=st.floats(0.75, 1.35), start=st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_an_object_of_about_the_expected_length_stays_as_it_is(length: int, factor: float, start: int) -> None:
    alone = organ_and_neighbour(start, length, 0)
    expectation = Expectation(area_mm2=500.0, length_mm=length * SLICE_MM / factor, middles_mm=())
    np.testing.assert_array_equal(likely_part(alone, SURE, POSITIONS, expectation, CONFIG), alone)


def test_slices_that_hardly_show_the_target_go_before_others() -> None:
    alone = organ_and_neighbour(5, 24, 0)
    doubted = np.where(np.arange(COUNT) < 17, 0.2, 0.9)
    part = likely_part(alone, doubted, POSITIONS, wanted(12), CONFIG)
    assert rows(part)[-1] == 28 and rows(part)[0] > 10


def test_nothing_is_cut_where_no_length_is_expected() -> None:
    both = organ_and_neighbour(4, 12, 12)
    unknown = Expectation(area_mm2=500.0, length_mm=0.0, middles_mm=(50.0,))
    np.testing.assert_array_equal(likely_part(both, SURE, POSITIONS, unknown, CONFIG), both)


def test_the_direction_of_the_slices_does_not_matter() -> None:
    both = organ_and_neighbour(4, 12, 10)
    there = likely_part(both, SURE, POSITIONS, wanted(12, 9.5 * SLICE_MM), CONFIG)
    back = likely_part(both[::-1], SURE, POSITIONS[::-1], wanted(12, 9.5 * SLICE_MM), CONFIG)
    np.testing.assert_array_equal(back[::-1], there)
