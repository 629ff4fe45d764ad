"""From prompted slices to the volume: both directions, stop rules, limits, and equal results when parts are kept."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from bench import ORGAN, SLICES, SPACING, Bench

from fakes import SIZE
from ssmsam.interactive.propagation import PropagationConfig, propagate
from ssmsam.interactive.segmenter import SliceMasks
from ssmsam.models.frame import mask_to_logits
from ssmsam.models.prompt_decoder import Candidates
from ssmsam.progress import Cancelled

EXTENT = [index for index in range(SLICES) if ORGAN[index].any()]


def seed(index: int) -> dict[int, np.ndarray]:
    return {index: ORGAN[index]}


def dice(masks: SliceMasks) -> float:
    found = np.zeros_like(ORGAN)
    for index, mask in masks.items():
        found[index] = mask
    return 2 * (found & ORGAN).sum() / (found.sum() + ORGAN.sum())


def equal(one: SliceMasks, other: SliceMasks) -> bool:
    return list(one) == list(other) and all(np.array_equal(one[index], other[index]) for index in one)


def test_one_slice_becomes_the_organ_in_both_directions(bench: Bench) -> None:
    found = propagate(bench.embeddings, bench.decoder, seed(9))
    assert dice(found.masks) > 0.9
    assert min(found.masks) <= EXTENT[0] + 1
    assert max(found.masks) >= EXTENT[-1] - 1


@pytest.mark.parametrize("index", [EXTENT[1], 9, EXTENT[-2]])
def test_it_stops_where_the_organ_ends_and_says_why(bench: Bench, index: int) -> None:
    found = propagate(bench.embeddings, bench.decoder, seed(index))
    assert set(found.masks) <= set(EXTENT)
    assert {stop.seed for stop in found.stops} == {index}
    assert {stop.reason for stop in found.stops} <= {"presence", "empty", "collapsed", "jumped"}
    assert len(found.stops) == 2


def test_seeds_are_never_changed(bench: Bench) -> None:
    odd = np.zeros_like(ORGAN[9])
    odd[28:32, 18:30] = True
    seeds = {6: ORGAN[6], 9: odd, 12: ORGAN[12]}
    found = propagate(bench.embeddings, bench.decoder, seeds)
    for index, mask in seeds.items():
        assert np.array_equal(found.masks[index], mask)


class CopyDecoder:
    """The neighbour's mask once more."""

    logits_size = SIZE
    least_likeness = 0.0

    def predict(self, embedding, *, frame, prompt=None, previous=None, neighbour=None) -> Candidates:
        return Candidates(mask_to_logits(neighbour.mask)[0], torch.ones(1), 1.0)


def test_between_two_seeds_the_nearer_one_counts_more(bench: Bench) -> None:
    whole, half = ORGAN[9], ORGAN[9] & (np.indices(ORGAN[9].shape)[1] < 20)
    found = propagate(bench.embeddings, CopyDecoder(), {6: whole, 12: half}, PropagationConfig(limits=(6, 12)))
    for index in (7, 8):
        assert np.array_equal(found.masks[index], whole)
    for index in (10, 11):
        assert np.array_equal(found.masks[index], half)
    good = propagate(bench.embeddings, bench.decoder, {5: ORGAN[5], 13: ORGAN[13]})
    assert dice(good.masks) > 0.9


def test_an_empty_seed_ends_the_organ(bench: Bench) -> None:
    found = propagate(bench.embeddings, bench.decoder, {9: ORGAN[9], 11: np.zeros_like(ORGAN[9])})
    assert 10 in found.masks
    assert max(found.masks) == 10
    assert min(found.masks) <= EXTENT[0] + 1


def test_shape_fills_the_gap_where_neither_side_arrives(bench: Bench) -> None:
    never = PropagationConfig(min_presence=2.0)
    assert set(propagate(bench.embeddings, bench.decoder, seed(9), never).masks) == {9}
    found = propagate(bench.embeddings, bench.decoder, {8: ORGAN[8], 12: ORGAN[12]}, never)
    assert set(found.masks) == {8, 9, 10, 11, 12}
    assert found.masks[10].sum() == pytest.approx(ORGAN[10].sum(), rel=0.15)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"min_presence": 2.0}, "presence"),
        ({"min_quality": 0.95}, "quality"),
        ({"min_area_ratio": 2.0}, "collapsed"),
        ({"max_area_ratio": 0.1, "small_mm2": 0.0}, "leaked"),
        ({"min_iou": 1.0}, "jumped"),
    ],
)
def test_every_stop_rule_stops(bench: Bench, rule: dict, reason: str) -> None:
    found = propagate(bench.embeddings, bench.decoder, seed(9), PropagationConfig(**rule))
    assert reason in {stop.reason for stop in found.stops}
    assert len(found.masks) <= 2


def test_limits_and_distance(bench: Bench) -> None:
    limited = propagate(bench.embeddings, bench.decoder, seed(9), PropagationConfig(limits=(8, 11)))
    assert list(limited.masks) == [8, 9, 10, 11]
    assert {stop.reason for stop in limited.stops} == {"limit"}
    near = propagate(bench.embeddings, bench.decoder, seed(9), PropagationConfig(max_mm=2 * SPACING[0]))
    assert list(near.masks) == [7, 8, 9, 10, 11]
    assert {stop.reason for stop in near.stops} == {"distance"}


def test_neighbours_are_told_their_distance_in_millimetres(bench: Bench) -> None:
    propagate(bench.embeddings, bench.decoder, seed(9))
    assert bench.decoder.distances == {SPACING[0]}


def test_no_time_leaves_the_seeds_and_is_not_kept(bench: Bench) -> None:
    hurried = propagate(bench.embeddings, bench.decoder, seed(9), PropagationConfig(budget_s=0.0))
    assert list(hurried.masks) == [9]
    assert hurried.steps == 0
    assert {stop.reason for stop in hurried.stops} == {"time"}
    later = propagate(bench.embeddings, bench.decoder, seed(9), known=hurried.sections)
    assert equal(later.masks, propagate(bench.embeddings, bench.decoder, seed(9)).masks)
    assert len(later.masks) > 5


def test_when_time_is_short_the_nearest_slices_come_first(bench: Bench) -> None:
    def slow(phase: str, done: int, total: int) -> None:
        time.sleep(0.05)

    bench.embeddings.embed()
    found = propagate(bench.embeddings, bench.decoder, seed(9), PropagationConfig(budget_s=0.22), slow)
    assert 2 <= len(found.masks) <= 7
    assert abs((max(found.masks) - 9) - (9 - min(found.masks))) <= 1


def test_progress_and_cancel(bench: Bench) -> None:
    reported: list[tuple[int, int]] = []
    found = propagate(
        bench.embeddings, bench.decoder, seed(9), progress=lambda _, done, total: reported.append((done, total))
    )
    assert [done for done, _ in reported[:-1]] == list(range(found.steps))
    assert reported[-1] == (SLICES - 1, SLICES - 1)

    def stop(phase: str, done: int, total: int) -> None:
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        propagate(bench.embeddings, bench.decoder, seed(9), progress=stop)


def test_after_a_correction_only_its_sections_are_computed_and_the_result_is_the_same(bench: Bench) -> None:
    seeds = {5: ORGAN[5], 9: ORGAN[9], 12: ORGAN[12]}
    first = propagate(bench.embeddings, bench.decoder, seeds)
    corrected = {**seeds, 9: ORGAN[9] & (np.indices(ORGAN[9].shape)[0] < 34)}
    partly = propagate(bench.embeddings, bench.decoder, corrected, known=first.sections)
    wholly = propagate(bench.embeddings, bench.decoder, corrected)
    assert equal(partly.masks, wholly.masks)
    assert partly.steps == 2 * (9 - 5 - 1) + 2 * (12 - 9 - 1)
    assert partly.steps < wholly.steps
    assert not equal(partly.masks, first.masks)


def test_the_same_seeds_again_decode_nothing_but_other_settings_do(bench: Bench) -> None:
    first = propagate(bench.embeddings, bench.decoder, seed(9))
    assert propagate(bench.embeddings, bench.decoder, seed(9), known=first.sections).steps == 0
    limited = PropagationConfig(limits=(8, 11))
    assert propagate(bench.embeddings, bench.decoder, seed(9), limited, known=first.sections).steps == 3


def test_no_slice_is_encoded_twice(bench: Bench) -> None:
    propagate(bench.embeddings, bench.decoder, {6: ORGAN[6], 12: ORGAN[12]})
    assert bench.embedder.encoded <= SLICES


def test_no_seeds_and_seeds_outside(bench: Bench) -> None:
    assert len(propagate(bench.embeddings, bench.decoder, {}).masks) == 0
    with pytest.raises(ValueError, match="slices 0 to 19"):
        propagate(bench.embeddings, bench.decoder, {20: ORGAN[9]})
