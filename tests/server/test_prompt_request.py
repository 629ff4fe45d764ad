"""Every way in which clients send prompts, and what is wrong with them."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.interactive.request import InvalidPrompt, PromptRequest
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Grid

GRID = Grid((40, 30, 50), np.diag([1.0, 1.0, 3.0, 1.0]))  # 50 columns, 30 rows, 40 slices
STORED = Plane(0)
FLAT = Grid((1, 30, 50), np.eye(4))


def parse(dimension: int = 2, *, grid: Grid = GRID, plane: Plane = STORED, **params: object) -> PromptRequest:
    return read_prompts(params, grid=grid, plane=plane, dimension=dimension)


def contents(request: PromptRequest) -> dict:
    return {
        index: (prompt.positive.tolist(), prompt.negative.tolist(), prompt.box)
        for index, prompt in request.slices.items()
    }


# -- points


def test_points_are_column_row_slice() -> None:
    request = parse(foreground=[[41, 7, 12]], background=[[3, 29, 12]], slice=12)
    assert contents(request) == {12: ([[41, 7]], [[3, 29]], None)}
    assert request.current == 12


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null"])
def test_lists_may_be_null_empty_or_text(nothing: object) -> None:
    request = parse(foreground=[[1, 2, 3]], background=nothing, roi=nothing, z_range=nothing, current_point=nothing)
    assert contents(request) == {3: ([[1, 2]], [], None)}
    assert parse(foreground=nothing, background=nothing, roi=nothing).empty


def test_lists_may_be_json_text() -> None:
    text = parse(foreground="[[1, 2, 3]]", background="[[4, 5, 3]]", roi="[0, 9, 0, 9, 2, 4]", slice="3")
    assert contents(text) == contents(
        parse(foreground=[[1, 2, 3]], background=[[4, 5, 3]], roi=[0, 9, 0, 9, 2, 4], slice=3)
    )


def test_two_number_points_need_a_slice() -> None:
    assert contents(parse(foreground=[[4, 5]], slice=7)) == {7: ([[4, 5]], [], None)}
    assert contents(parse(foreground=[[4, 5]], grid=FLAT)) == {0: ([[4, 5]], [], None)}
    with pytest.raises(InvalidPrompt, match="does not say its slice"):
        parse(foreground=[[4, 5]])


def test_float_points_are_kept_and_belong_to_the_nearest_slice() -> None:
    assert contents(parse(foreground=[[4.4, 5.6, 7.4]])) == {7: ([[4.4, 5.6]], [], None)}


def test_points_under_the_key_that_label_names() -> None:
    request = parse(spleen=[[1, 2, 3]], liver=[[9, 9, 3]], background=[[5, 6, 3]], label="spleen")
    assert contents(request) == {3: ([[1, 2]], [[5, 6]], None)}
    assert contents(parse(spleen="[[1, 2, 3]]", label="spleen")) == {3: ([[1, 2]], [], None)}


@pytest.mark.parametrize("label", ["device", "model", "background", "roi", "slice"])
def test_a_label_named_like_an_option_is_only_a_label(label: str) -> None:
    params = {"device": "cpu", "model": "sam_2d", "roi": [0, 9, 0, 9, 2, 4], "slice": 3, "background": [[8, 8, 3]]}
    request = parse(foreground=[[1, 2, 3]], label=label, **params)
    assert request.label == label
    assert contents(request)[3][:2] == ([[1, 2]], [[8, 8]])


def test_repeated_points_count_once() -> None:
    assert contents(parse(foreground=[[1, 2, 3], [1, 2, 3]])) == {3: ([[1, 2]], [], None)}


@pytest.mark.parametrize(
    "point", [[math.nan, 2, 3], [math.inf, 2, 3], ["a", 2, 3], [1], [1, 2, 3, 4], 5, None, [True, 2, 3], [None, 1, 2]]
)
def test_malformed_points_are_refused_by_name(point: object) -> None:
    with pytest.raises(InvalidPrompt, match="background point 2"):
        parse(foreground=[[9, 9, 3]], background=[[1, 2, 3], point], slice=3)


@pytest.mark.parametrize("value", ["[[1, 2", 7, {"x": 1}, [1, 2, 3], "nonsense"])
def test_a_malformed_list_is_refused(value: object) -> None:
    with pytest.raises(InvalidPrompt, match="foreground"):
        parse(foreground=value)


def test_nan_in_json_text_is_refused() -> None:
    with pytest.raises(InvalidPrompt, match="finite"):
        parse(foreground="[[NaN, 2, 3]]")


@pytest.mark.parametrize("point", [[50, 2, 3], [1, 30, 3], [1, 2, 40], [-1, 2, 3], [-120.5, 80.0, 3], [10**400, 1, 1]])
def test_points_outside_are_refused_with_the_size_in_voxels(point: list) -> None:
    with pytest.raises(InvalidPrompt) as error:
        parse(foreground=[point])
    assert "[50, 30, 40]" in str(error.value) or "finite" in str(error.value)
    assert "[i, j, k]" in str(error.value) or "finite" in str(error.value)


def test_the_same_voxel_cannot_be_inside_and_outside() -> None:
    with pytest.raises(InvalidPrompt, match=r"voxel \[4, 5, 6\].*delete one"):
        parse(foreground=[[4, 5, 6]], background=[[4.2, 4.9, 6]])


# -- the current slice


def test_in_two_dimensions_only_the_current_slice_counts() -> None:
    points = {"foreground": [[1, 2, 3], [4, 5, 6]], "background": [[7, 8, 3]]}
    assert contents(parse(**points, slice=3)) == {3: ([[1, 2]], [[7, 8]], None)}
    assert contents(parse(**points)) == {6: ([[4, 5]], [], None)}
    assert contents(parse(background=[[7, 8, 3], [1, 1, 9]])) == {9: ([], [[1, 1]], None)}


def test_slice_zero_is_a_slice() -> None:
    points = {"foreground": [[1, 2, 0], [4, 5, 6]]}
    request = parse(**points, slice=0)
    assert request.current == 0
    assert contents(request) == {0: ([[1, 2]], [], None)}


def test_a_slice_without_points_is_empty_and_named() -> None:
    request = parse(foreground=[[1, 2, 3]], slice=5)
    assert request.empty
    assert request.current == 5


@pytest.mark.parametrize("said", [400, -3, 12.5])
def test_a_slice_outside_gives_way_to_the_points(said: float) -> None:
    assert parse(foreground=[[1, 2, 3]], slice=said).current == 3


def test_a_slice_outside_without_anything_else_is_an_error() -> None:
    with pytest.raises(InvalidPrompt, match="slices 0 to 39"):
        parse(slice=400)


@pytest.mark.parametrize("said", ["x", math.nan, [3], True])
def test_a_malformed_slice_is_refused(said: object) -> None:
    with pytest.raises(InvalidPrompt, match="slice"):
        parse(foreground=[[1, 2, 3]], slice=said)


def test_the_newest_point_says_the_slice_when_nothing_else_does() -> None:
    points = {"foreground": [[1, 2, 3], [4, 5, 6]]}
    assert parse(**points, current_point=[1, 2, 3]).current == 3


# -- boxes


PAIRS = st.tuples(st.integers(0, 20), st.integers(2, 9))


@given(i=PAIRS, j=PAIRS, k=PAIRS, dimension=st.sampled_from([2, 3]))
def test_each_pair_of_a_roi_may_descend(i: tuple, j: tuple, k: tuple, dimension: int) -> None:
    pairs = [(low, low + length) for low, length in (i, j, k)]
    requests = [
        parse(
            dimension,
            roi=[number for pair, flip in zip(pairs, flips, strict=True) for number in (pair[::-1] if flip else pair)],
        )
        for flips in itertools.product([False, True], repeat=3)
    ]
    (i0, i1), (j0, j1), (k0, k1) = pairs
    for request in requests:
        assert contents(request) == {(k0 + k1) // 2: ([], [], (i0, j0, i1, j1))}
        assert request.limits == (k0, k1)


def test_the_box_of_a_slicer_roi_is_columns_then_rows() -> None:
    assert contents(parse(roi=[10, 30, 15, 25, 2, 5], slice=3)) == {3: ([], [], (10, 15, 30, 25))}


def test_four_numbers_are_two_corners_on_one_slice() -> None:
    assert contents(parse(roi=[30, 25, 10, 15], slice=3)) == {3: ([], [], (10, 15, 30, 25))}
    assert contents(parse(roi=[30, 25, 10, 15], grid=FLAT)) == {0: ([], [], (10, 15, 30, 25))}
    assert contents(parse(3, roi=[30, 25, 10, 15], foreground=[[20, 20, 8]])) == {8: ([[20, 20]], [], (10, 15, 30, 25))}


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("said", [{}, {"slice": 315}])
def test_a_box_without_a_slice_is_a_clear_error(dimension: int, said: dict) -> None:
    with pytest.raises(InvalidPrompt, match="six numbers"):
        parse(dimension, roi=[10, 15, 30, 25], **said)


@pytest.mark.parametrize("millimetres", [315, 70, 0, 30])
def test_a_slice_in_millimetres_gives_way_to_the_middle_of_the_roi(millimetres: int) -> None:
    request = parse(roi=[10, 30, 15, 25, 18, 12], slice=millimetres)
    assert request.current == 15
    assert list(request.slices) == [15]


def test_a_slice_inside_the_roi_is_used() -> None:
    assert parse(roi=[10, 30, 15, 25, 18, 12], slice=13).current == 13


def test_a_box_elsewhere_does_not_touch_the_clicked_slice() -> None:
    assert contents(parse(roi=[10, 30, 15, 25, 12, 18], foreground=[[1, 2, 3]])) == {3: ([[1, 2]], [], None)}


def test_a_box_reaching_out_of_the_volume_is_cut() -> None:
    assert contents(parse(roi=[-5, 30, 15, 90, 12, 18])) == {15: ([], [], (0, 15, 30, 29))}


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ([60, 70, 1, 9, 1, 9], "outside the volume"),
        ([1, 9, 1, 9, 50, 60], "outside the volume"),
        ([-9, -2, 1, 9, 1, 9], "outside the volume"),
        ([5, 5, 1, 9, 1, 9], "draw it round"),
        ([1, 2, 3], "numbers"),
        ([1, 2, 3, 4, 5], "numbers"),
        ([1, 2, 3, 4, 5, math.nan], "finite"),
        ([1, 2, 3, "x", 5, 6], "roi"),
    ],
)
def test_bad_boxes_are_refused(roi: list, message: str) -> None:
    with pytest.raises(InvalidPrompt, match=message):
        parse(roi=roi)


def test_in_three_dimensions_a_box_counts_on_its_middle_and_on_clicked_slices_inside() -> None:
    request = parse(3, roi=[10, 30, 15, 25, 12, 18], foreground=[[20, 20, 13], [20, 20, 30]], background=[[1, 1, 17]])
    boxes = {index: prompt.box for index, prompt in request.slices.items()}
    assert boxes == {13: (10, 15, 30, 25), 15: (10, 15, 30, 25), 17: (10, 15, 30, 25), 30: None}
    assert request.limits == (12, 18)


# -- planes


def test_other_planes_sort_points_by_their_own_axis() -> None:
    coronal = parse(3, plane=Plane(1), foreground=[[41, 7, 12]], roi=[30, 45, 5, 9, 10, 20])
    assert contents(coronal) == {7: ([[41, 12]], [], (30, 10, 45, 20))}
    sagittal = parse(2, plane=Plane(2), foreground=[[41, 7, 12]], slice=12)
    assert contents(sagittal) == {41: ([[7, 12]], [], None)}


@given(
    flips=st.tuples(st.booleans(), st.booleans()),
    points=st.lists(st.tuples(st.integers(0, 49), st.integers(0, 29), st.integers(0, 39)), min_size=1, max_size=5),
)
def test_stored_orientation_moves_points_with_the_anatomy(flips: tuple, points: list) -> None:
    """The same places in the patient, clicked in an image that is stored mirrored, give mirrored prompts."""
    sign = np.array([-1 if flip else 1 for flip in flips] + [1])
    affine = GRID.affine.copy()
    affine[:3, 3] = affine[:3, :3] @ np.where(sign < 0, np.array(GRID.shape[::-1]) - 1, 0)
    affine[:3, :3] = affine[:3, :3] * sign
    mirrored = Grid(GRID.shape, affine)
    clicks = mirrored.to_ijk(GRID.to_lps(np.array(points))).round().tolist()
    request, original = parse(3, grid=mirrored, foreground=clicks), parse(3, foreground=[list(p) for p in points])
    assert list(request.slices) == list(original.slices)
    for index, prompt in request.slices.items():
        back = np.where(sign[:2] < 0, np.array([49, 29]) - prompt.positive, prompt.positive)
        assert sorted(back.tolist()) == sorted(original.slices[index].positive.tolist())


# -- options


def test_defaults() -> None:
    request = parse(3, foreground=[[1, 2, 3]])
    assert (request.label, request.client_id, request.reset_state) == ("", "anonymous", False)
    assert (request.limits, request.propagate, request.max_mm) == (None, True, None)


@pytest.mark.parametrize("value", [[20, 5], [5, 20], "5-20", "20,5", "[20, 5]"])
def test_z_range_in_either_order_and_as_text(value: object) -> None:
    assert parse(3, foreground=[[1, 2, 8]], z_range=value).limits == (5, 20)


def test_z_range_is_cut_to_the_volume_and_to_the_box() -> None:
    assert parse(3, foreground=[[1, 2, 8]], z_range=[30, 400]).limits == (30, 39)
    assert parse(3, roi=[1, 9, 1, 9, 5, 20], z_range=[10, 30]).limits == (10, 20)
    with pytest.raises(InvalidPrompt, match="no slice"):
        parse(3, foreground=[[1, 2, 8]], z_range=[50, 60])
    with pytest.raises(InvalidPrompt, match="in common"):
        parse(3, roi=[1, 9, 1, 9, 5, 9], z_range=[10, 30])
    with pytest.raises(InvalidPrompt, match="two slice numbers"):
        parse(3, foreground=[[1, 2, 8]], z_range=[1, 2, 3])


def test_options_of_the_table() -> None:
    request = parse(3, reset_state="true", propagate=False, max_mm="30", label="liver", client_id="a")
    assert (request.reset_state, request.propagate, request.max_mm) == (True, False, 30)
    assert (request.label, request.client_id) == ("liver", "a")
    assert parse(3, max_mm=0, z_range="").max_mm is None
    with pytest.raises(InvalidPrompt, match="reset_state"):
        parse(3, reset_state="maybe")


def test_dimension_is_the_programs_business() -> None:
    with pytest.raises(ValueError, match="dimension"):
        parse(4)


def test_negative_only() -> None:
    assert parse(background=[[1, 2, 3]]).negative_only
    assert not parse(background=[[1, 2, 3]], foreground=[[4, 4, 3]]).negative_only
    assert not parse().negative_only


SCALAR = st.sampled_from([None, True, -1, 0, 3, 39, 40, 2.5, 1e300, math.nan, math.inf, "", "x", "7", "[1]", {}])
JSON = SCALAR | st.lists(SCALAR | st.lists(SCALAR | st.integers(0, 45), max_size=4), max_size=6)
NAMES = ["foreground", "background", "roi", "slice", "label", "reset_state", "z_range", "max_mm", "current_point"]


@given(params=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), dimension=st.sampled_from([2, 3]))
def test_whatever_comes_is_understood_or_refused(params: dict, dimension: int) -> None:
    """Nothing but InvalidPrompt ever comes out, and what is accepted lies inside the volume."""
    for sent in (params, {key: json.dumps(value) for key, value in params.items()}):
        try:
            request = read_prompts(sent, grid=GRID, dimension=dimension)
        except InvalidPrompt:
            continue
        for index, prompt in request.slices.items():
            assert 0 <= index < 40
            assert prompt.clicks or prompt.box
