"""Which slices the rules choose, on volumes whose answer is plain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ssmsam.active.acquisition import (
    RULES,
    expected_slices,
    next_slices,
    representative,
    slice_uncertainty,
    spaced,
    uncertainty,
)
from ssmsam.active.expected_gain import Gains, ends_of, main_run, outlines
from ssmsam.active.volume_state import ANY, Forecast, VolumeState


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def looks_of(count: int, groups: int = 4) -> dict[int, np.ndarray]:
    """Neighbouring slices look alike, in ``groups`` plain groups."""
    vectors = np.eye(groups)[np.arange(count) * groups // count] + rng().normal(0, 0.01, (count, groups))
    return dict(enumerate(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))


def forecast(count: int, there: range, *, error: float = 5.0, area: float = 1000.0, unsure: float = 0.1) -> Forecast:
    """A model that draws the organ on the slices ``there``; within ``unsure`` slices of its ends it may be or not."""
    index = np.arange(count)
    drawn = np.isin(index, there)
    inwards = np.minimum(index - there.start, there.stop - 1 - index) + 0.5
    return Forecast(
        slices=index,
        presence=1 / (1 + np.exp(-inwards / unsure)),
        area=np.where(drawn, area, 0.0),
        inside=np.where(drawn, area - error / 2, 0.0),
        outside=np.where(drawn, error / 2, area),
        dice=1 - error / area,
    )


def with_planted(found: Forecast, index: int, *, share: float = 0.6) -> Forecast:
    """The same with one slice of which most of the mask is expected to be wrong."""
    inside, outside = found.inside.copy(), found.outside.copy()
    inside[index], outside[index] = (1 - share / 2) * found.area[index], share / 2 * found.area[index]
    return replace(found, inside=inside, outside=outside)


def state(count: int = 40, **known) -> VolumeState:
    return VolumeState(count=count, slice_mm=3.0, **known)


@pytest.mark.parametrize("hardest", [12, 17, 21, 26])
@pytest.mark.parametrize("rule", ["next_slices", "uncertainty"])
def test_a_planted_hardest_slice_is_found(rule: str, hardest: int) -> None:
    # both ends of the organ are annotated, so that nothing else is in question
    annotated = {"liver": {9: False, 10: True, 29: True, 30: False, 15: True}}
    found = with_planted(forecast(40, range(10, 30)), hardest)
    chosen = RULES[rule](state(annotated=annotated, forecasts={"liver": found}), 1, ["liver"], rng())
    assert [one.index for one in chosen] == [hardest]
    reason = chosen[0].reasons["liver"]
    assert reason.numbers["expected_dice"] == pytest.approx(0.7)
    assert f"slice {hardest}" in reason.sentence and "expected Dice 0.70" in reason.sentence


def test_where_an_organ_ends_is_chosen_early() -> None:
    unsure = forecast(40, range(10, 30), unsure=2)
    known = state(annotated={"liver": {20: True}}, forecasts={"liver": unsure})
    chosen = next_slices(known, 2, ["liver"], rng())
    assert sorted(one.index for one in chosen) == pytest.approx([10, 29], abs=1)
    assert all(one.reasons["liver"].numbers["find_end"] for one in chosen)
    assert all("seems to end near it" in one.reasons["liver"].sentence for one in chosen)


def test_an_end_is_chosen_as_far_as_it_is_unknown() -> None:
    """One end is known to the slice, of the other only that it comes before the volume's."""
    annotated = {"liver": {9: False, 10: True, 20: True}}
    found = forecast(40, range(10, 30), unsure=2)
    (end,) = [one for one in ends_of(found, state(annotated=annotated), "liver") if len(one.rows)]
    assert end.rows.tolist() == list(range(21, 40))
    chosen = next_slices(state(annotated=annotated, forecasts={"liver": found}), 1, ["liver"], rng())
    assert chosen[0].index == pytest.approx(29, abs=1) and chosen[0].reasons["liver"].numbers["find_end"]


def test_an_organ_that_may_be_missed_past_its_end_is_no_doubtful_outline() -> None:
    """Whether it is there is in question at the end; between slices that show it, the whole area was missed."""
    found = forecast(40, range(10, 30), error=100.0)
    presence, area = np.where(np.arange(40) == 20, 1.0, 0.5), np.where(np.arange(40) == 20, 0.0, found.area)
    missed = replace(found, presence=presence, area=area, inside=np.where(area > 0, found.inside, 0.0))
    missed.outside[20] = 1000.0
    assert outlines(missed)[20] == 1000.0
    assert outlines(missed)[15] == outlines(missed)[5] == 100.0


def test_what_is_wrong_inside_comes_before_an_end_that_is_nearly_known() -> None:
    annotated = {"liver": {8: False, 11: True, 28: True, 31: False}}
    found = with_planted(forecast(40, range(10, 30), unsure=0.5), 19)
    chosen = next_slices(state(annotated=annotated, forecasts={"liver": found}), 1, ["liver"], rng())
    assert chosen[0].index == 19 and "find_end" not in chosen[0].reasons["liver"].numbers


def test_chosen_slices_keep_away_from_annotated_ones_and_from_each_other() -> None:
    annotated = {"liver": {9: False, 10: True, 12: True, 29: True, 30: False}}
    known = state(annotated=annotated, forecasts={"liver": forecast(40, range(10, 30), error=100.0)})
    chosen = sorted(one.index for one in next_slices(known, 3, ["liver"], rng()))
    assert chosen[0] >= 14 and chosen[-1] <= 27
    assert min(np.diff(chosen)) >= 3


def test_small_and_large_organs_are_chosen_alike() -> None:
    found = {"liver": forecast(40, range(5, 20), error=300.0), "aorta": forecast(40, range(22, 38), error=6, area=20)}
    annotated = {"liver": {12: True}, "aorta": {30: True}}
    for rule in (next_slices, uncertainty):
        chosen = rule(state(annotated=annotated, forecasts=found), 4, ["liver", "aorta"], rng())
        queried = [label for one in chosen for label in one.labels]
        assert queried.count("liver") == queried.count("aorta") >= 2


def test_a_slice_that_helps_two_labels_is_chosen_both() -> None:
    found = {label: with_planted(forecast(40, range(10, 30)), 18) for label in ("liver", "spleen")}
    annotated = {label: {9: False, 10: True, 29: True, 30: False} for label in found}
    (chosen,) = next_slices(state(annotated=annotated, forecasts=found), 1, ["liver", "spleen"], rng())
    assert chosen.index == 18 and set(chosen.labels) == {"liver", "spleen"}


def test_a_label_that_nobody_annotated_gets_representative_slices_beside_the_others() -> None:
    known = state(
        descriptors=looks_of(40), annotated={"liver": {20: True}}, forecasts={"liver": forecast(40, range(10, 30))}
    )
    chosen = next_slices(known, 4, ["liver", "spleen"], rng())
    queried = [label for one in chosen for label in one.labels]
    assert queried.count("spleen") == 2 and queried.count("liver") == 2


def test_at_the_beginning_every_kind_of_slice_is_shown_once() -> None:
    for rule in ("next_slices", "uncertainty", "representative"):
        chosen = RULES[rule](state(descriptors=looks_of(40)), 4, [], rng())
        assert {one.index * 4 // 40 for one in chosen} == {0, 1, 2, 3}
        assert all(one.labels == () and one.reasons[ANY].sentence for one in chosen)


def test_what_is_annotated_counts_as_shown() -> None:
    known = state(descriptors=looks_of(40), annotated={"liver": {5: True, 15: True}})
    assert {one.index * 4 // 40 for one in representative(known, 2, ["liver"], rng())} == {2, 3}


def test_without_embeddings_slices_are_spread_evenly() -> None:
    assert [one.index for one in representative(state(count=9), 3, [], rng())] == [1, 4, 7]
    some = state(count=40, descriptors={3: np.array([1.0, 0.0])})
    assert [one.index for one in representative(some, 2, [], rng())] == [9, 29]
    taken = state(count=9, annotated={"liver": {4: True}})
    assert [one.index for one in spaced(taken, 3, ["liver"])] == [1, 3, 7]


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_left_when_all_is_annotated_for_these_labels(rule: str) -> None:
    full = {index: 10 <= index < 30 for index in range(40)}
    known = state(descriptors=looks_of(40), annotated={"liver": full}, forecasts={"liver": forecast(40, range(10, 30))})
    assert RULES[rule](known, 3, ["liver"], rng()) == []
    assert RULES[rule](known, 3, [], rng()) == []
    assert RULES[rule](known, 3, ["liver", "spleen"], rng()) != []  # nobody looked for the spleen yet


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_names_an_annotated_slice_or_one_twice(rule: str) -> None:
    for seed in range(8):
        annotated = {int(index): 10 <= index < 30 for index in rng(seed).permutation(40)[: 4 * seed + 1]}
        known = state(
            descriptors=looks_of(40),
            annotated={"liver": annotated},
            forecasts={"liver": forecast(40, range(10, 30), error=50.0)},
        )
        chosen = [one.index for one in RULES[rule](known, 5, ["liver"], rng(seed))]
        assert chosen and len(chosen) == len(set(chosen)) <= 5
        assert not set(chosen) & set(annotated)


def test_chance_within_the_organ_stays_within_the_organ() -> None:
    known = state(annotated={"liver": {12: True, 9: False}}, forecasts={"liver": forecast(40, range(8, 24))})
    assert expected_slices(known, "liver") == [8, *range(10, 24)]
    drawn = {one.index for s in range(30) for one in RULES["foreground_random"](known, 2, ["liver"], rng(s))}
    assert drawn <= set(expected_slices(known, "liver")) - {12} and len(drawn) > 8


def test_doubt_is_about_being_there_where_nothing_is_drawn() -> None:
    presence, area = np.array([0.5, 0.01, 1.0]), np.array([0.0, 0, 9])
    inside, outside = np.array([0.0, 0, 7]), np.array([2.0, 100, 4])
    found = Forecast(np.arange(3), presence, area, inside, outside, 0.6)
    assert found.loss == pytest.approx([1.0, 1.0, 0.3])
    assert slice_uncertainty(found) == pytest.approx([1.0, 0.02, 0.3])


def test_the_organ_is_the_largest_group_of_neighbours() -> None:
    found = forecast(40, range(10, 30))
    found.area[35] = 10.0
    assert list(main_run(found, state(), "liver")) == list(range(10, 30))
    assert list(main_run(found, state(annotated={"liver": {15: False}}), "liver")) == list(range(16, 30))


def test_the_gain_falls_once_a_slice_is_taken() -> None:
    known = state(annotated={"liver": {20: True}}, forecasts={"liver": forecast(40, range(10, 30))})
    gains = Gains(known, "liver")
    index = gains.best()
    assert index is not None
    before = gains.values()[index + 1]
    gains.take(index)
    assert gains.values()[index] == -1 and gains.values()[index + 1] < 0.7 * before


def test_a_person_is_asked_for_the_end_of_which_little_is_known() -> None:
    annotated = {"spleen": {14: True, 19: True, 20: False}}
    found = with_planted(forecast(40, range(10, 20), unsure=2), 17)
    first, second = next_slices(state(annotated=annotated, forecasts={"spleen": found}), 2, ["spleen"], rng())
    assert first.index in (9, 10, 11), "the likeliest end"
    assert f"slice {first.index}: spleen seems to end near it: find" in first.reasons["spleen"].sentence
    assert first.reasons["spleen"].numbers["find_end"] and first.gain > second.gain
    assert second.index == 17
    answered = {"spleen": {**annotated["spleen"], 9: False, 10: True}}
    (first,) = next_slices(state(annotated=answered, forecasts={"spleen": found}), 1, ["spleen"], rng())
    assert first.index == 17, "this end is known now"
