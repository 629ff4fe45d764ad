import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssmsam.report import bootstrap_ci, mean_over_labels, summarise
from ssmsam_research.metrics import dice, iou, iou_of_dice, summarise_labels

masks = hnp.arrays(bool, (4, 5, 6))


def _cube(size: int) -> np.ndarray:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[:size, :size, :size] = True
    return mask


def test_dice_of_known_masks():
    # 8 voxels inside 64: 2*8 / (8 + 64)
    assert dice(_cube(2), _cube(4)) == pytest.approx(100 * 16 / 72)
    assert iou(_cube(2), _cube(4)) == pytest.approx(100 * 8 / 64)


def test_rule_for_empty_masks():
    empty = np.zeros((8, 8, 8))
    assert dice(empty, empty) == iou(empty, empty) == 100.0
    assert dice(empty, _cube(1)) == dice(_cube(1), empty) == iou(_cube(1), empty) == 0.0


@given(masks, masks)
def test_dice_is_symmetric_bounded_and_follows_iou(a, b):
    assert dice(a, b) == dice(b, a)
    assert 0.0 <= iou(a, b) <= dice(a, b) <= 100.0
    assert iou_of_dice(dice(a, b)) == pytest.approx(iou(a, b))
    assert dice(a, a) == 100.0


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        dice(np.zeros((2, 2)), np.zeros((2, 3)))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_interval_holds_the_mean_and_stays_in_the_range_of_the_values(values):
    low, high = bootstrap_ci(values)
    assert min(values) - 1e-9 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= max(values) + 1e-9


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_ci(rng.normal(50.0, 10.0, size=40), seed=trial, resamples=500)
        hits += low <= 50.0 <= high
    assert 0.88 <= hits / 200 <= 0.99  # a percentile bootstrap of 40 values covers a little less than 95 %


def test_interval_shrinks_with_more_cases():
    rng = np.random.default_rng(1)
    few, many = (bootstrap_ci(rng.normal(50, 10, size=n)) for n in (10, 1000))
    assert many[1] - many[0] < 0.3 * (few[1] - few[0])


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        summarise([])


def test_a_rare_label_counts_as_much_as_a_frequent_one():
    per_label = {"frequent": summarise([90.0] * 9), "rare": summarise([10.0])}
    assert mean_over_labels(per_label) == pytest.approx(50.0)
    assert per_label["rare"].as_json() == {"mean": 10.0, "ci95": [10.0, 10.0], "n": 1}


def test_an_interval_over_cases_draws_whole_cases():
    scores = {"liver": {"a": 10.0, "b": 20.0}, "spleen": {"a": 30.0}}
    found = summarise_labels(scores)
    assert found.mean == pytest.approx((15 + 30) / 2) and found.n == 2
    # only case a: (10 + 30) / 2; only case b: its one label
    assert found.ci95 == pytest.approx((20.0, 22.5), abs=2.6) and found.ci95[0] == pytest.approx(20.0)
    assert summarise_labels({"liver": {"a": 7.0}}).ci95 == (7.0, 7.0)
    with pytest.raises(ValueError):
        summarise_labels({})
