"""Scribbles and lassos: what becomes of drawn lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import ORGAN, Bench, draw_volume
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssmsam.interactive.request import InvalidPrompt, PromptRequest
from ssmsam.interactive.session import SegmentationState, extends, same
from ssmsam.interactive.strokes import inner_part, lasso_mask, middle, pixels_along, with_more_points
from ssmsam.models.prompt_decoder import SlicePrompt, Stroke
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.volume import Grid, reoriented

SHAPE = (20, 30)
LINES = arrays(float, st.tuples(st.integers(1, 6), st.just(2)), elements=st.floats(0, 19))
SCRIBBLE = [[14, 30, 9], [20, 30, 9], [26, 31, 9]]
LASSO = [[20 + 12.5 * np.cos(angle), 30 + 16 * np.sin(angle), 9.0] for angle in np.arange(0, 6.2, 0.4)]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(draw_volume())


@given(LINES)
def test_the_middle_is_half_the_way(xy: np.ndarray) -> None:
    half = middle(xy)
    ways = np.hypot(*np.diff(xy, axis=0).T)
    before = 0.0
    for n, way in enumerate(ways):
        if before + way >= ways.sum() / 2:
            before += np.hypot(*(half - xy[n]))
            break
        before += way
    assert before == pytest.approx(ways.sum() / 2, abs=1e-6)
    np.testing.assert_allclose(middle(xy[::-1]), half, atol=1e-6)


@given(LINES)
def test_a_line_runs_through_pixels_without_a_gap(xy: np.ndarray) -> None:
    pixels = pixels_along(xy, SHAPE)
    assert np.abs(np.diff(pixels, axis=0)).max(initial=0) <= 1
    found = {tuple(pixel) for pixel in pixels}
    assert {tuple(pixel) for pixel in np.rint(xy[:, ::-1]).astype(int)} <= found


@given(LINES, st.booleans())
def test_a_scribble_that_is_followed_adds_nothing(xy: np.ndarray, positive: bool) -> None:
    stroke = Stroke(tuple(map(tuple, xy.tolist())), positive)
    prompt = SlicePrompt(positive=np.ones((1, 2)), strokes=(stroke,))
    assert with_more_points(prompt, np.full(SHAPE, positive)) is prompt
    more = with_more_points(prompt, np.full(SHAPE, not positive))
    assert len(more.positive) == 1 + positive and len(more.negative) == (not positive)


def test_the_point_is_where_the_longest_part_is_missed() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, :4] = mask[:, 8:10] = True
    prompt = SlicePrompt(positive=np.array([[2.0, 5]]), strokes=(Stroke(((0, 5), (19, 5))),))
    assert with_more_points(prompt, mask).positive.tolist() == [[2, 5], [14, 5]]


@given(arrays(float, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(0, 19)))
def test_the_inner_part_is_inside(xy: np.ndarray) -> None:
    outline = tuple(map(tuple, xy.tolist()))
    inside, inner = lasso_mask(outline, SHAPE), inner_part(outline, SHAPE)
    assert not (inner & ~inside).any()
    assert inner.any() == inside.any()


def strokes(points: list[list[float]], **more: Any) -> list[dict[str, Any]]:
    return [{"points": points, **more}]


def test_a_scribble_and_a_lasso_find_the_organ(bench: Bench) -> None:
    for params in ({"scribbles": strokes(SCRIBBLE)}, {"lasso": strokes(LASSO)}):
        found = bench.two(SegmentationState(), **params).slice_mask(9)
        assert 2 * (found & ORGAN[9]).sum() / (found.sum() + ORGAN[9].sum()) > 0.9, params
    spread = bench.three(SegmentationState(), lasso=strokes(LASSO))
    assert len(spread.slices) > 5


def test_what_is_sent_again_is_answered_again_and_more_of_it_goes_on(bench: Bench) -> None:
    state = SegmentationState()
    first = bench.two(state, scribbles=strokes(SCRIBBLE)).slice_mask(9)
    again = bench.two(state, scribbles=strokes(SCRIBBLE)).slice_mask(9)
    np.testing.assert_array_equal(first, again)
    one, more = (
        bench.parse(2, scribbles=strokes(SCRIBBLE) * 1 + extra).slices[9]
        for extra in ([], strokes([[50, 34, 9], [50, 38, 9]], negative=True))
    )
    assert extends(more, one) and not extends(one, more)
    assert same(one, bench.parse(2, scribbles=strokes(SCRIBBLE)).slices[9])
    lassoed = bench.parse(2, lasso=strokes(LASSO)).slices[9]
    assert not same(lassoed, bench.parse(2, lasso=strokes(LASSO[:-1])).slices[9])


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LPI", "PIR"])
@pytest.mark.parametrize("space", ["lps", "ras"])
def test_millimetres_mean_the_same_voxels(codes: str, space: str) -> None:
    grid = reoriented(draw_volume(), codes).grid
    ijk = np.array([[4, 5, 6], [7, 5, 6], [9, 12, 6]])
    mm = grid.to_lps(ijk) * ([-1, -1, 1] if space == "ras" else 1)
    for name in ("scribbles", "lasso"):
        said = [
            read_prompts({name: strokes(points, space=kind)}, grid=grid, dimension=2).slices[6]
            for points, kind in ((ijk.tolist(), "voxel"), (mm.tolist(), space))
        ]
        one, other = ([*prompt.points, *prompt.outline] for prompt in said)
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_points_of_two_numbers_lie_on_the_slice_that_is_named(bench: Bench) -> None:
    flat = [[x, y] for x, y, _ in LASSO]
    one, other = bench.parse(2, lasso=strokes(flat), slice=9), bench.parse(2, lasso=strokes(LASSO))
    assert one.current == other.current == 9
    assert same(one.slices[9], other.slices[9])


def test_a_lasso_may_run_over_the_edge(bench: Bench) -> None:
    over = [[-20, 12, 9], [20, -9, 9], [36, 46, 9], [-20, 50, 9]]
    box = bench.parse(2, lasso=strokes(over)).slices[9].box
    assert box is not None
    assert box[:2] == (0, 0)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"scribbles": [[1, 2, 3]]}, "scribble 1 must be an object"),
        ({"scribbles": 5}, "must be a list"),
        ({"scribbles": strokes([])}, "scribble 1 has no points"),
        ({"scribbles": strokes([[1, 2, 3], [1, 2, 4]])}, "slices 3 to 4"),
        ({"scribbles": strokes([[1, 2, 3], [1, 2, "x"]])}, "scribble 1 point 2"),
        ({"scribbles": strokes([[1, 2, float("nan")]])}, "finite"),
        ({"scribbles": strokes([[1, 2, 300]])}, "outside the volume"),
        ({"scribbles": strokes([[1, 2]])}, "does not say its slice"),
        ({"scribbles": strokes([[1, 2]], space="ras"), "slice": 3}, "does not say its slice"),
        ({"scribbles": strokes(SCRIBBLE, space="mm")}, "voxel, lps or ras"),
        ({"scribbles": strokes(SCRIBBLE, positive=True)}, "'positive'; known"),
        ({"scribbles": strokes([[1, 2, 3]] * 20_001)}, "more than 20000 points"),
        ({"lasso": strokes(LASSO[:2])}, "3 points or more"),
        ({"lasso": strokes([[5, 5, 9]] * 4)}, "holds no pixel"),
        ({"lasso": strokes(LASSO) * 2}, "two lassos on slice 9"),
    ],
)
def test_what_cannot_be_used(bench: Bench, params: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidPrompt, match=said):
        bench.parse(2, **params)


def test_a_request_without_a_server() -> None:
    """From Python, without JSON."""
    request = PromptRequest.of(
        grid=Grid((4, 20, 30), np.eye(4)), dimension=2, lassos=[[[2, 2, 1], [9, 2, 1], [9, 9, 1]]]
    )
    assert request.slices[1].box == (2, 2, 9, 9)
