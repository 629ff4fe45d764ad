"""Masks keep to the clicks, and a correction stays where it was made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ssmsam.interactive.segmenter import (
    enforce_clicks,
    limit_to_box,
    satisfied,
    subtract,
    violates,
    without_fragments,
    without_islands,
)
from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.ops import touching

SHAPE = (40, 50)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    yx = np.indices(SHAPE)
    return np.hypot(yx[0] - y, yx[1] - x) <= radius


def prompt(positive: list = [], negative: list = [], box: tuple | None = None) -> SlicePrompt:  # noqa: B006
    return SlicePrompt(np.reshape(positive, (-1, 2)), np.reshape(negative, (-1, 2)), box)


def logits_of(mask: np.ndarray) -> np.ndarray:
    """Surer far from the border."""
    return ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)


VOXELS = st.lists(st.tuples(st.integers(0, 49), st.integers(0, 39)), min_size=1, max_size=8, unique=True)


@given(clicks=VOXELS, split=st.integers(0, 8), seed=st.integers(0, 99))
def test_every_click_is_obeyed_whatever_the_mask(clicks: list, split: int, seed: int) -> None:
    """Corrections never undo each other, and cleaning does not undo them."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    queried = prompt(clicks[:split], clicks[split:])
    mask = without_islands(enforce_clicks(noise > 0, noise, queried), queried)
    assert satisfied(mask, queried) == len(clicks)


def test_a_satisfied_mask_is_left_alone() -> None:
    mask = disc(20, 20, 10)
    queried = prompt([[20, 20]], [[40, 20]])
    assert not violates(mask, queried)
    assert np.array_equal(enforce_clicks(mask, logits_of(mask), queried), mask)


def test_a_negative_click_removes_the_piece_that_nobody_asked_for() -> None:
    wanted, leak = disc(12, 20, 8), disc(36, 20, 6)
    corrected = enforce_clicks(wanted | leak, logits_of(wanted | leak), prompt([[12, 20]], [[36, 22]]))
    assert np.array_equal(corrected, wanted)


def test_a_negative_click_never_removes_the_main_piece_whole() -> None:
    organ, crumb = disc(14, 20, 10), disc(36, 20, 3)
    corrected = enforce_clicks(organ | crumb, logits_of(organ | crumb), prompt([], [[22, 20]]))
    assert not corrected[20, 22]
    assert corrected[organ].mean() > 0.7


def test_a_large_leak_goes_when_the_click_inside_is_elsewhere() -> None:
    wanted, leak = disc(36, 20, 4), disc(14, 20, 12)
    assert np.array_equal(
        enforce_clicks(wanted | leak, logits_of(wanted | leak), prompt([[36, 20]], [[14, 20]])), wanted
    )


def test_a_negative_click_on_the_only_piece_removes_no_more_than_its_surroundings() -> None:
    mask = disc(20, 20, 12)
    corrected = enforce_clicks(mask, logits_of(mask), prompt([], [[30, 20]]))
    removed = mask & ~corrected
    assert not corrected[20, 30]
    assert 0 < removed.sum() < 0.3 * mask.sum()
    assert removed[disc(30, 20, 6)].sum() == removed.sum()


def test_a_positive_click_adds_around_itself_but_not_towards_negative_clicks() -> None:
    mask = disc(12, 20, 8)
    corrected = enforce_clicks(mask, logits_of(mask), prompt([[12, 20], [30, 20]], [[32, 20]]))
    assert corrected[20, 30]
    assert not corrected[20, 31:].any()
    assert np.array_equal(corrected & disc(12, 20, 8), mask)


def test_box_limits_the_mask_and_widens_for_positive_clicks() -> None:
    everything = np.ones(SHAPE, bool)
    limited = limit_to_box(everything, prompt(box=(10, 5, 30, 25)))
    assert limited[5:26, 10:31].all()
    assert limited.sum() == 23 * 23
    widened = limit_to_box(everything, prompt([[40, 10]], box=(10, 5, 30, 25)))
    assert widened[10, 40]
    assert not widened[35].any()


def test_tiny_islands_go_unless_clicked() -> None:
    main, crumb, clicked = disc(15, 20, 10), disc(35, 5, 1), disc(35, 35, 1)
    mask = main | crumb | clicked
    assert np.array_equal(without_islands(mask, prompt([[15, 20], [35, 35]])), main | clicked)
    assert np.array_equal(without_islands(mask, prompt(box=(0, 0, 49, 39))), main)


def test_crumbs_are_what_little_is_left_of_a_piece() -> None:
    organ, small = disc(14, 20, 10), disc(36, 20, 2)
    cut = organ & ~disc(14, 20, 8) & (np.indices(SHAPE)[0] < 12)
    assert cut.any()
    assert np.array_equal(without_fragments(cut | small, organ | small), small)
    half = organ & (np.indices(SHAPE)[1] < 14)
    assert np.array_equal(without_fragments(half | small, organ | small), half | small)


def test_connected_to_keeps_what_overlaps() -> None:
    assert np.array_equal(touching(disc(12, 20, 8) | disc(36, 20, 6), disc(14, 20, 3)), disc(12, 20, 8))
    assert not touching(disc(36, 20, 6), disc(12, 20, 5)).any()


def test_carving_follows_the_proposal_only_around_the_click() -> None:
    base = disc(25, 20, 15)
    proposal = base & ~disc(36, 20, 4) & ~disc(14, 20, 4)
    carved = subtract(base, proposal, prompt([], [[36, 20]]))
    assert np.array_equal(carved, base & ~disc(36, 20, 4))
    assert np.array_equal(subtract(base, np.zeros_like(base), prompt([], [[36, 20]])), base)


@pytest.mark.parametrize("point", [[0, 0], [49, 39]])
def test_clicks_in_the_corners(point: list) -> None:
    empty = np.zeros(SHAPE, bool)
    assert enforce_clicks(empty, np.zeros(SHAPE), prompt([point]))[point[1], point[0]]
