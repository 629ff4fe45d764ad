"""The benchmark of strategies: what reaches them, and how its figures are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from ssmsam.active.acquisition import RULES
from ssmsam.active.forecast import Expected
from ssmsam.active.volume_state import Forecast, VolumeState
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.model_choice import ModelChoice
from ssmsam_research.protocols.active import (
    BASELINES,
    BISECTION,
    INTERVAL,
    OTHER,
    STRATEGIES,
    TOLD,
    WHOLE,
    ActiveProtocol,
    Annotator,
    Answered,
    binned,
    measure_label,
    run_episode,
    score,
)
from ssmsam_research.protocols.active_run import (
    ActiveRun,
    active_result,
    agreement,
    curves,
    draw_active,
    interval,
    reliability,
    slices_needed,
    slices_ratio,
)

COUNT, HARDEST = 30, 17
ORGAN = range(6, 25)


def organ() -> np.ndarray:
    """The organ has one shape on most slices, and another on one that no neighbour tells of."""
    truth = np.zeros((COUNT, 20, 20), dtype=bool)
    truth[list(ORGAN), 4:14, 4:14] = True
    truth[HARDEST] = False
    truth[HARDEST, 12:19, 12:19] = True
    return truth


class CopyingLearner:
    """Copies the nearest annotated slice over the organ's extent, and knows that one slice looks odd.

    A :class:`~ssmsam_research.protocols.active.Learner` without a network. It keeps what it was shown.
    """

    def __init__(self) -> None:
        self.shown: dict[int, np.ndarray] = {}
        self.descriptors = {index: np.eye(COUNT)[index] for index in range(COUNT)}

    def answer(self, label: str, masks: Mapping[int, np.ndarray]) -> Answered:
        self.shown.update(masks)
        mask = np.zeros((COUNT, 20, 20), dtype=bool)
        for index in ORGAN:
            mask[index] = masks[min(masks, key=lambda known: (abs(known - index), known))]
        area = mask.sum(axis=(1, 2)).astype(float)
        doubt = np.where(np.isin(np.arange(COUNT), [HARDEST]), 0.9, 0.05)
        doubt[list(masks)] = 0
        forecast = Forecast(
            np.arange(COUNT),
            np.where(area > 0, 0.95, 0.05),
            area,
            area * (1 - doubt / 2),
            area * doubt / 2,
            dice=1 - doubt.mean(),
        )
        return Answered(mask, Expected(None, forecast))  # type: ignore[arg-type]  # the proposals are not looked at

    def cells(self, label: str, masks: Mapping[int, np.ndarray], truth: np.ndarray) -> dict[str, list[list[float]]]:
        return {"cells": [[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]}

    def state(self, label: str, masks: Mapping[int, np.ndarray]) -> VolumeState:
        annotated = {label: {index: bool(mask.any()) for index, mask in masks.items()}}
        forecasts = {label: self.answer(label, masks).expected.forecast}
        return VolumeState(COUNT, 3.0, self.descriptors, annotated, forecasts)


def chosen_by(strategy: str, truth: np.ndarray, *, budget: int = 5) -> tuple[list[int], list[int], list[float]]:
    """The slices that were drawn, those that were marked as empty, and the Dice that was expected after each."""
    annotator, rng = Annotator(truth), np.random.default_rng(3)
    steps = run_episode(CopyingLearner(), "organ", annotator, RULES[strategy], start=10, budget=budget, rng=rng)
    return annotator.drawn, annotator.emptied, [answered.expected.forecast.dice for _, answered in steps]


@pytest.mark.parametrize("strategy", ["next_slices", "uncertainty"])
def test_a_planted_hardest_slice_is_asked_for_early(strategy: str) -> None:
    assert HARDEST in chosen_by(strategy, organ(), budget=4)[0]


@pytest.mark.parametrize("strategy", RULES)
def test_only_what_was_drawn_reaches_strategy_and_model(strategy: str) -> None:
    """Garbage on every slice that was not chosen changes neither a choice nor an expectation."""
    drawn, emptied, expected = chosen_by(strategy, organ())
    garbage = np.random.default_rng(0).random(organ().shape) < 0.5
    garbage[[*drawn, *emptied]] = organ()[[*drawn, *emptied]]
    assert chosen_by(strategy, garbage) == (drawn, emptied, expected)
    assert len(drawn) == 5


def test_whoever_is_asked_for_an_end_draws_the_last_slice_and_marks_the_next_one_as_empty() -> None:
    annotator = Annotator(organ())
    found = annotator.draw_end(19, 1)
    assert {index: bool(mask.any()) for index, mask in found.items()} == {24: True, 25: False}
    np.testing.assert_array_equal(found[24], organ()[24])
    assert list(annotator.draw_end(6, -1)) == [5], "it was seen on its last slice"
    assert (annotator.drawn, annotator.emptied) == ([24], [25, 5])
    assert list(Annotator(organ()[:25]).draw_end(19, 1)) == [24], "the volume ends with the organ"


def test_ends_are_asked_for_where_they_are_unknown_and_count_as_one_slice() -> None:
    """The model of this test is unsure of nothing but one slice: then no end is asked for."""
    assert not chosen_by("next_slices", organ(), budget=3)[1]
    annotator, rng = Annotator(organ()), np.random.default_rng(0)
    rule = TOLD[INTERVAL]([*ORGAN], 4)
    steps = run_episode(CopyingLearner(), "organ", annotator, rule, start=10, budget=4, rng=rng)
    assert annotator.emptied == [25, 5] and len(steps) == 4 and len(steps[-1][0]) == 6


def test_what_is_drawn_leads_to_no_other_slice() -> None:
    truth, learner = organ(), CopyingLearner()
    annotator = Annotator(truth)
    run_episode(learner, "organ", annotator, RULES["random"], start=10, budget=4, rng=np.random.default_rng(0))
    assert sorted(learner.shown) == sorted(annotator.drawn)
    assert not any(np.shares_memory(mask, truth) or mask.base is not None for mask in learner.shown.values())


def test_scores_are_over_other_slices_and_over_what_a_user_keeps() -> None:
    truth, learner = organ(), CopyingLearner()
    masks = {10: truth[10]}
    answered = learner.answer("organ", masks)
    found = score(masks, answered, truth)
    right, wrong = 17 * 100, 49 + 100  # the hardest slice gets the copied square, which shares 4 pixels with it
    shared = int((truth[10] & truth[HARDEST]).sum())
    assert found["dice"][OTHER] == pytest.approx(200 * (right + shared) / (2 * right + wrong), abs=0.01)
    assert found["dice"][WHOLE] > found["dice"][OTHER]
    masks[HARDEST] = truth[HARDEST]
    again = score(masks, Answered(answered.mask, answered.expected), truth)
    assert again["dice"] == {OTHER: 100.0, WHOLE: 100.0}
    assert sum(row[0] for row in found["reliability"]["presence"]) == COUNT - 1
    assert sum(row[0] for row in found["reliability"]["loss of drawn slices"]) == len(ORGAN) - 1


def test_bins_keep_counts_and_sums() -> None:
    rows = binned(np.array([0.05, 0.07, 1.0]), np.array([0, 1, 1]))
    assert rows[0] == [2.0, 0.12, 1.0] and rows[-1] == [1.0, 1.0, 1.0]


def test_slices_needed_between_two_numbers() -> None:
    curve = {1: 40.0, 2: 60.0, 3: 50.0, 4: 80.0}
    assert slices_needed(curve, 40) == 1
    assert slices_needed(curve, 60) == 2
    assert slices_needed(curve, 70) == pytest.approx(3.5)
    assert slices_needed(curve, 81) is None


def records_of(curves: Mapping[str, list[float]], cases: str = "ab") -> list[dict]:
    empty = [[0.0, 0.0, 0.0]] * 10
    return [
        {
            "case": case, "label": "organ", "strategy": strategy, "seed": 0, "n": n, "slice": n,
            "dice": {OTHER: value, WHOLE: value}, "expected_dice": value, "estimate": None,
            "reliability": {"loss of drawn slices": empty, "presence": empty},
        }
        for case in cases for strategy, values in curves.items() for n, value in enumerate(values, 1)
    ]  # fmt: skip


def test_the_ratio_is_of_slices_for_the_same_dice() -> None:
    records = records_of({"next_slices": [40, 80, 90, 95], BASELINES[0]: [40, 60, 70, 80], "random": [40, 41, 42, 43]})
    assert slices_ratio(records, "next_slices", OTHER)["mean"] == pytest.approx(2 / 4)
    assert slices_ratio(records, "next_slices", OTHER)["ci95"] == [0.5, 0.5]
    missed = slices_ratio(records, "random", OTHER)
    assert missed["mean"] == pytest.approx(5 / 4) and missed["not_reached"] == 1


def test_intervals_are_over_patients_and_hold_the_mean() -> None:
    records = records_of({"next_slices": [40.0, 80.0]}, cases="a") + [
        {**record, "case": "b", "dice": {OTHER: value, WHOLE: value}}
        for record, value in zip(records_of({"next_slices": [0, 0]}, cases="b"), (60.0, 90.0), strict=True)
    ]
    first = curves(records, OTHER)["next_slices"][1]
    assert first["mean_dice"] == 50.0 and first["ci95"] == [40.0, 60.0]
    assert curves(records[:2], OTHER)["next_slices"][1]["ci95"] is None
    assert interval(["a", "b"], lambda cases: float(len(set(cases)))) == [1.0, 2.0]


def test_agreement_says_how_estimates_predict() -> None:
    found = agreement([(50.0, 40.0), (70.0, 60.0), (90.0, 80.0)])
    assert found == {"correlation": 1.0, "bias": 10.0, "mean_absolute_error": 10.0, "n": 3}
    assert agreement([]) == {"correlation": None, "bias": None, "mean_absolute_error": None, "n": 0}


def test_the_estimate_on_held_out_slices_is_compared_where_there_is_one() -> None:
    records = records_of({"next_slices": [40, 80, 90, 95]})
    for record in records:
        record["estimate"] = record["dice"][OTHER] - 5 if record["n"] >= 3 else None
    found = reliability(records)["held_out_dice"]
    assert found["n"] == 4 and found["bias"] == -5 and found["correlation"] == 1.0


@pytest.fixture(scope="module")
def records() -> list[dict]:
    protocol = ActiveProtocol(budget=4, seeds=(0, 1))
    return [{"case": "a", **record} for record in measure_label(CopyingLearner(), "organ", organ(), protocol)]  # type: ignore[arg-type]


def test_all_strategies_begin_alike_and_chance_is_repeatable(records: list[dict]) -> None:
    assert len(records) == len(STRATEGIES) * 2 * 4
    for seed in (0, 1):
        assert len({record["slice"] for record in records if record["n"] == 1 and record["seed"] == seed}) == 1
    again = measure_label(CopyingLearner(), "organ", organ(), ActiveProtocol(budget=4, seeds=(0, 1)))  # type: ignore[arg-type]
    assert [{"case": "a", **record} for record in again] == records


@pytest.mark.parametrize(
    ("strategy", "within_budget"),
    [(INTERVAL, {6, 12, 18, 24}), (BISECTION, {6, 24})],
)
def test_who_leafed_through_the_volume_first_spreads_slices_over_the_organ(
    strategy: str, within_budget: set[int]
) -> None:
    protocol = ActiveProtocol(strategies=(strategy,), budget=5, seeds=(0,))
    drawn = [record["slice"] for record in measure_label(CopyingLearner(), "organ", organ(), protocol)]  # type: ignore[arg-type]
    assert len(set(drawn)) == 5 and set(drawn) <= set(ORGAN)
    assert within_budget <= set(drawn)


def test_bisection_halves_the_widest_gap_each_time() -> None:
    protocol = ActiveProtocol(strategies=(BISECTION,), budget=8, seeds=(1,))
    drawn = [record["slice"] for record in measure_label(CopyingLearner(), "organ", organ(), protocol)]  # type: ignore[arg-type]
    for number in range(3, len(drawn)):
        known = sorted(drawn[:number])
        low, high = max(pairwise(known), key=lambda gap: gap[1] - gap[0])
        assert drawn[number] == (low + high) // 2


def test_the_result_says_everything_and_can_be_drawn(records: list[dict], tmp_path: Path) -> None:
    run = ActiveRun(ActiveProtocol(budget=4), LabelledSet("set", (), {1: "organ"}), ModelChoice(), "0" * 64)
    result = active_result(run, records)
    assert json.loads(json.dumps(result))["protocol"] == "active"
    assert set(result["curves"][OTHER]) == set(STRATEGIES)
    assert result["mean_dice"] == result["curves"][OTHER]["next_slices"][4]["mean_dice"]
    ratios = result["slices_ratio_to_foreground_random"][WHOLE]
    assert set(ratios) == set(STRATEGIES) - {BASELINES[0]} and ratios["next_slices"]["mean"] > 0
    ratios = result["slices_ratio_to_extent_interval"][WHOLE]
    assert set(ratios) == set(STRATEGIES) - {INTERVAL}
    assert result["reliability"]["volume_dice"]["n"] == len(records)
    drawn = draw_active(tmp_path, result, "set")
    assert len(drawn) == 3
    assert all(matplotlib.image.imread(path).std() > 0.01 for path in drawn)


def test_nothing_to_measure_is_said() -> None:
    run = ActiveRun(ActiveProtocol(), LabelledSet("set", (), {}), ModelChoice(), "0" * 64)
    with pytest.raises(ValueError, match="nothing to measure"):
        active_result(run, [])
