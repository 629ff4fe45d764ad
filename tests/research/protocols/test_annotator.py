import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssmsam.cli.annotator import Click, bounding_box, first_click, next_click

slices = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@st.composite
def truth_and_mask(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))


def _disc(centre, radius, shape=(60, 80)):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@given(slices)
def test_first_click_lies_inside_the_target(truth):
    assume(truth.any())
    click = first_click(truth)
    assert click.positive
    assert truth[click.y, click.x]


def test_first_click_on_a_disc_is_its_centre():
    assert first_click(_disc((30, 40), 12)) == Click(x=40, y=30, positive=True)


def test_first_click_goes_to_the_largest_part():
    truth = _disc((15, 15), 4) | _disc((40, 60), 10)
    assert first_click(truth) == Click(x=60, y=40, positive=True)


def test_without_a_target_there_is_no_first_click():
    with pytest.raises(ValueError, match="not on this slice"):
        first_click(np.zeros((5, 5)))


@given(truth_and_mask())
def test_a_click_never_leaves_the_error_and_has_its_sign(pair):
    truth, mask = pair
    click = next_click(truth, mask)
    if (truth == mask).all():
        assert click is None
    else:
        assert click is not None
        assert truth[click.y, click.x] != mask[click.y, click.x]
        assert click.positive == truth[click.y, click.x]


@given(truth_and_mask())
def test_clicks_never_repeat_and_end_when_every_wrong_pixel_was_clicked(pair):
    truth, mask = pair
    clicked: list[Click] = []
    while (click := next_click(truth, mask, clicked=clicked)) is not None:
        assert (click.x, click.y) not in {(c.x, c.y) for c in clicked}
        clicked.append(click)
    assert len(clicked) == np.count_nonzero(truth != mask)


def test_over_segmentation_gets_a_negative_click_in_the_leak():
    truth = _disc((30, 20), 8)
    mask = truth | _disc((30, 60), 6)
    assert next_click(truth, mask) == Click(x=60, y=30, positive=False)


def test_the_largest_error_comes_first_whatever_its_kind():
    truth = _disc((30, 20), 10) | _disc((10, 70), 3)
    mask = _disc((30, 20), 10) | _disc((45, 60), 9)
    assert next_click(truth, mask) == Click(x=60, y=45, positive=False)
    assert next_click(truth, mask & truth) == Click(x=70, y=10, positive=True)


def test_inner_distance_is_measured_in_millimetres():
    # A bar and a tower of 1 mm x 9 mm and 5 x 5 pixels: with flat pixels the middle moves along the long axis.
    truth = np.zeros((30, 30), dtype=bool)
    truth[10:13, 2:28] = True  # 3 rows; at 10 mm per row its inner distance beats the block's
    truth[20:28, 5:13] = True
    truth[13:20, 8] = True  # one region
    square, tall = first_click(truth), first_click(truth, pixel_mm=(10.0, 1.0))
    assert square.y >= 20
    assert tall.y == 11


@given(slices)
def test_box_is_tight_and_never_of_one_pixel(truth):
    assume(truth.any())
    x0, y0, x1, y1 = bounding_box(truth)
    assert 0 <= x0 <= x1 < truth.shape[1] and 0 <= y0 <= y1 < truth.shape[0]
    inside = truth[y0 : y1 + 1, x0 : x1 + 1]
    assert inside.sum() == truth.sum()
    for axis in (0, 1):
        filled, wide = inside.any(axis=1 - axis), truth.shape[axis] > 1
        assert filled[[0, -1]].all() or (len(filled) == 2 and filled.any())
        assert len(filled) > 1 or not wide
