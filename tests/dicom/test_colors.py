"""Colours of segments."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.dicom.terminology import APART, cielab, concept_of, distinct_colours

COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


def smallest_gap(colours: list[tuple[int, int, int]]) -> float:
    lab = cielab(np.array(colours))
    gaps = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float(gaps[~np.eye(len(lab), dtype=bool)].min())


@given(st.lists(st.none() | COLOUR, min_size=2, max_size=20))
def test_all_are_told_apart_and_the_first_wish_is_granted(wanted: list) -> None:
    colours = distinct_colours(wanted)
    assert len(colours) == len(wanted)
    assert smallest_gap(colours) >= APART
    wishes = [index for index, wish in enumerate(wanted) if wish is not None]
    if wishes:
        assert colours[wishes[0]] == wanted[wishes[0]]
    assert colours == distinct_colours(wanted)


def test_a_pair_of_organs_has_two_shades_of_the_usual_colour() -> None:
    kidney = concept_of("left kidney").colour
    left, right = distinct_colours([kidney, kidney])
    assert left == kidney
    assert APART <= np.linalg.norm(cielab(left) - cielab(right)) < 3 * APART


def test_many_segments_still_differ() -> None:
    assert len(set(distinct_colours([None] * 300))) == 300
