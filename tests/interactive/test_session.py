"""What a user sees: clicks, corrections, deletions, label switches, several users; in 2-D and in 3-D."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from bench import ORGAN, OTHER, SATELLITE, SLICES, Bench, draw_volume

from fakes import RegionDecoder
from ssmsam.interactive.propagation import PropagationConfig
from ssmsam.interactive.request import InvalidPrompt
from ssmsam.interactive.segmenter import uncertainty
from ssmsam.interactive.session import SegmentationResult, SegmentationState, StateStore, segment_2d, segment_3d
from ssmsam.models.frame import Frame, mask_to_logits
from ssmsam.models.prompt_decoder import Candidates
from ssmsam.progress import Cancelled
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import MrPercentiles
from ssmsam.volume.volume import Volume

INSIDE = [20, 30, 9]
ELSEWHERE = [50, 34, 11]


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return 2 * ((mask > 0) & truth).sum() / ((mask > 0).sum() + truth.sum())


def slices_of(result: SegmentationResult) -> list[int]:
    return np.flatnonzero(result.mask.any(axis=(1, 2))).tolist()


# -- two dimensions


def test_a_click_in_2d_answers_on_its_slice_only(bench: Bench, state: SegmentationState) -> None:
    result = bench.two(state, foreground=[INSIDE], slice=9)
    assert result.mask.shape == bench.volume.shape
    assert result.mask.dtype == np.uint8
    assert slices_of(result) == [9]
    assert dice(result.mask[9], ORGAN[9]) > 0.95
    assert result.details["slice"] == 9
    json.dumps(result.details)


def test_later_clicks_on_a_slice_do_not_run_the_encoder(bench: Bench, state: SegmentationState) -> None:
    bench.two(state, foreground=[INSIDE])
    assert bench.embedder.encoded == 1
    bench.two(state, foreground=[INSIDE, [22, 30, 9]])
    bench.two(state, foreground=[INSIDE, [22, 30, 9]], background=[[30, 50, 9]])
    bench.two(SegmentationState(), foreground=[[19, 29, 9]])
    assert bench.embedder.encoded == 1


def test_points_on_other_slices_do_not_matter_in_2d(bench: Bench) -> None:
    alone = bench.two(SegmentationState(), foreground=[INSIDE], slice=9)
    crowd = bench.two(SegmentationState(), foreground=[ELSEWHERE, INSIDE], background=[[20, 30, 5]], slice=9)
    assert np.array_equal(alone.mask, crowd.mask)


def test_slice_zero_works(state: SegmentationState) -> None:
    array = draw_volume().array[9:]
    bench = Bench(draw_volume().__class__(array=array, affine=draw_volume().affine, modality="MR"))
    result = bench.two(state, foreground=[[20, 30, 0], [20, 30, 3]], slice=0)
    assert slices_of(result) == [0]
    assert dice(result.mask[0], ORGAN[9]) > 0.95


def test_a_box_in_2d_with_a_slice_in_millimetres(bench: Bench, state: SegmentationState) -> None:
    result = bench.two(state, roi=[31, 9, 44, 16, 11, 7], slice=165)
    assert slices_of(result) == [9]
    assert dice(result.mask[9], ORGAN[9]) > 0.9


def test_the_second_click_gets_the_first_answer_back(bench: Bench, state: SegmentationState) -> None:
    bench.two(state, foreground=[INSIDE])
    assert bench.decoder.fed_back == 0
    bench.two(state, foreground=[INSIDE, [20, 8, 9]])
    assert bench.decoder.fed_back == 1


def test_corrections_in_2d_always_change_the_slice(bench: Bench, state: SegmentationState) -> None:
    first = bench.two(state, foreground=[INSIDE])
    less = bench.two(state, foreground=[INSIDE], background=[[24, 34, 9]])
    assert first.mask[9, 34, 24] == 1
    assert less.mask[9, 34, 24] == 0
    assert less.details["slices_changed"] == [9]
    more = bench.two(state, foreground=[INSIDE, [20, 8, 9]], background=[[24, 34, 9]])
    assert less.mask[9, 8, 20] == 0
    assert more.mask[9, 8, 20] == 1
    assert more.mask[9, 34, 24] == 0


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_deleted_point_is_gone(bench: Bench, dimension: int) -> None:
    ask = bench.two if dimension == 2 else bench.three
    state = SegmentationState()
    ask(state, foreground=[INSIDE])
    both = ask(state, foreground=[INSIDE, [20, 8, 9]])
    assert both.mask[9, 8, 20] == 1
    after = ask(state, foreground=[INSIDE])
    assert after.mask[9, 8, 20] == 0
    assert np.array_equal(after.mask, ask(SegmentationState(), foreground=[INSIDE]).mask)


def test_a_moved_point_is_not_fed_back(bench: Bench, state: SegmentationState) -> None:
    bench.two(state, foreground=[INSIDE])
    moved = bench.two(state, foreground=[[50, 34, 9]])
    assert bench.decoder.fed_back == 0
    assert dice(moved.mask[9], OTHER[9]) > 0.9


@pytest.mark.parametrize("dimension", [2, 3])
def test_no_prompt_and_no_mask_is_an_error_that_helps(bench: Bench, dimension: int) -> None:
    ask = bench.two if dimension == 2 else bench.three
    for params in ({}, {"foreground": [], "background": None, "roi": []}, {"slice": 5} if dimension == 2 else {}):
        with pytest.raises(InvalidPrompt, match="place a point inside the organ or draw a box"):
            ask(SegmentationState(), **params)
    with pytest.raises(InvalidPrompt, match="only background"):
        ask(SegmentationState(), background=[INSIDE])


def test_only_negative_clicks_in_2d_are_taken_out_of_the_mask(bench: Bench, state: SegmentationState) -> None:
    before = bench.two(state, foreground=[INSIDE])
    after = bench.two(state, background=[[24, 34, 9]])
    assert after.mask[9, 34, 24] == 0
    assert after.mask.any()
    assert not (after.mask > before.mask).any()
    again = bench.two(state, background=[[24, 34, 9], [16, 26, 9]])
    assert again.mask[9, 26, 16] == 0
    assert not (again.mask > after.mask).any()


def test_deleting_the_last_point_in_2d_forgets_the_slice(bench: Bench, state: SegmentationState) -> None:
    bench.two(state, foreground=[INSIDE])
    with pytest.raises(InvalidPrompt):
        bench.two(state, foreground=[], slice=9)
    with pytest.raises(InvalidPrompt, match="only background"):
        bench.two(state, background=[INSIDE])


def test_a_box_with_nothing_in_it_says_so(bench: Bench, state: SegmentationState) -> None:
    class Nothing(type(bench.decoder)):
        def predict(self, *args, **kwargs):
            found = super().predict(*args, **kwargs)
            return replace(found, logits=torch.full_like(found.logits, -9.0))

    bench.decoder = Nothing()
    for ask in (bench.two, bench.three):
        with pytest.raises(InvalidPrompt, match="slice 9: place a point"):
            ask(state, roi=[9, 31, 16, 44, 7, 11])
        assert ask(state, foreground=[INSIDE]).mask[9, 30, 20] == 1


# -- three dimensions


def test_one_click_in_3d_is_the_whole_organ(bench: Bench, state: SegmentationState) -> None:
    result = bench.three(state, foreground=[INSIDE])
    assert dice(result.mask, ORGAN) > 0.9
    assert min(slices_of(result)) < 9 < max(slices_of(result))
    assert result.mask.dtype == np.uint8
    assert len(result.details["stops"]) == 2
    json.dumps(result.details)


@pytest.mark.parametrize("k", [5, 9, 12])
def test_a_correction_on_any_slice_changes_that_slice_and_its_neighbours(bench: Bench, k: int) -> None:
    state = SegmentationState()
    first = bench.three(state, foreground=[INSIDE])
    wrong = first.mask.copy()
    column = 20 + 3
    assert wrong[k, 30, column] == 1
    corrected = bench.three(state, foreground=[INSIDE], background=[[column, 30, k]])
    assert corrected.mask[k, 30, column] == 0
    assert k in corrected.details["slices_changed"]
    added = bench.three(state, foreground=[INSIDE, [20, 8, k]], background=[[column, 30, k]])
    assert wrong[k, 8, 20] == 0
    assert added.mask[k, 8, 20] == 1
    assert added.mask[k, 30, column] == 0
    assert np.array_equal(added.mask[9], corrected.mask[9]) or k == 9


def test_a_second_prompted_slice_spreads_both_ways(bench: Bench, state: SegmentationState) -> None:
    bench.three(state, foreground=[INSIDE])
    result = bench.three(state, foreground=[INSIDE, [20, 8, 9]])
    found = [k for k in range(SLICES) if result.mask[k, 8, 20]]
    assert {8, 9, 10} <= set(found)


def test_taking_everything_away_on_a_slice_ends_the_organ_there(bench: Bench, state: SegmentationState) -> None:
    first = bench.three(state, foreground=[INSIDE])
    clicks = [[x, y, 11] for x in range(0, 64, 2) for y in range(0, 64, 2) if first.mask[11, y, x]]
    result = bench.three(state, foreground=[INSIDE], background=clicks)
    assert first.mask[11:].any()
    assert not result.mask[11:].any()
    assert np.array_equal(result.mask[:10], first.mask[:10])


def test_prompted_slices_are_not_changed_by_corrections_elsewhere(bench: Bench, state: SegmentationState) -> None:
    bench.three(state, foreground=[INSIDE, [20, 30, 5]])
    before = bench.three(state, foreground=[INSIDE, [20, 30, 5]], background=[[22, 33, 5]])
    after = bench.three(state, foreground=[INSIDE, [20, 30, 5], [20, 30, 13]], background=[[22, 33, 5]])
    assert np.array_equal(before.mask[5], after.mask[5])
    assert np.array_equal(before.mask[9], after.mask[9])


def test_the_order_of_corrections_does_not_matter_to_propagated_slices(bench: Bench) -> None:
    near, far = [23, 30, 11], [23, 30, 13]
    orders = []
    for steps in ([near], [far]), ([far], [near]):
        state, sent = SegmentationState(), []
        bench.three(state, foreground=[INSIDE])
        for step in steps:
            sent += step
            result = bench.three(state, foreground=[INSIDE], background=sent)
        orders.append(result.mask)
    assert np.array_equal(orders[0], orders[1])
    at_once = bench.three(SegmentationState(), foreground=[INSIDE], background=[near, far])
    assert np.array_equal(at_once.mask, orders[0])


class Copying(RegionDecoder):
    """Passes the neighbour's mask on as it is."""

    def predict(self, embedding, *, neighbour=None, **kwargs) -> Candidates:
        if neighbour is None:
            return super().predict(embedding, **kwargs)
        return Candidates(mask_to_logits(neighbour.mask)[0], torch.ones(1), 1.0)


def test_a_correction_nearer_to_the_prompts_may_settle_those_behind_it(bench: Bench, state: SegmentationState) -> None:
    bench.decoder = Copying()
    result = bench.three(state, foreground=[INSIDE], background=[[23, 30, 12], [23, 30, 14]])
    assert result.details["slices_prompted"] == [9, 12]
    assert result.mask[10, 30, 23] == 1
    assert not result.mask[12:, 30, 23].any()


def test_deleting_all_points_of_a_slice_frees_it(bench: Bench, state: SegmentationState) -> None:
    bench.three(state, foreground=[INSIDE])
    strange = bench.three(state, foreground=[INSIDE, [50, 34, 12]])
    assert strange.mask[12, 34, 50] == 1
    assert 12 in state.prompts
    after = bench.three(state, foreground=[INSIDE])
    assert np.array_equal(after.mask, bench.three(SegmentationState(), foreground=[INSIDE]).mask)
    assert set(state.prompts) == {9}
    assert 12 in state.masks


def test_a_correction_computes_only_what_it_touches(bench: Bench, state: SegmentationState) -> None:
    points = [[20, 30, 5], [20, 30, 9], [20, 30, 13]]
    bench.three(state, foreground=points)
    result = bench.three(state, foreground=points, background=[[23, 30, 13]])
    fresh = SegmentationState()
    assert 0 < result.details["slices_decoded"] < bench.three(fresh, foreground=points).details["slices_decoded"]
    assert bench.three(state, foreground=points, background=[[23, 30, 13]]).details["slices_decoded"] == 0


def test_the_same_request_twice_gives_the_same_mask(bench: Bench, state: SegmentationState) -> None:
    params = {"foreground": [INSIDE, [20, 8, 10]], "background": [[23, 30, 12]]}
    first = bench.three(state, **params)
    second = bench.three(state, **params)
    assert np.array_equal(first.mask, second.mask)
    assert second.details["slices_changed"] == []
    assert bench.embedder.encoded <= SLICES


def test_an_empty_request_in_3d_gives_the_present_mask(bench: Bench, state: SegmentationState) -> None:
    before = bench.three(state, foreground=[INSIDE])
    assert np.array_equal(bench.three(state).mask, before.mask)
    with pytest.raises(InvalidPrompt):
        bench.three(state, reset_state=True)


def test_only_negative_clicks_in_3d_change_their_slice_alone(bench: Bench, state: SegmentationState) -> None:
    before = bench.three(state, foreground=[INSIDE])
    after = bench.three(state, background=[[23, 30, 11]])
    assert after.mask[11, 30, 23] == 0
    assert after.details["slices_changed"] == [11]
    others = [k for k in range(SLICES) if k != 11]
    assert np.array_equal(after.mask[others], before.mask[others])


@pytest.mark.parametrize("dimension", [2, 3])
def test_without_a_label_no_remembered_mask_is_handed_out(bench: Bench, dimension: int) -> None:
    """A viewer that names no label may have switched to another object in the meantime."""
    state = SegmentationState()
    ask = bench.two if dimension == 2 else bench.three
    ask(state, label=None, foreground=[INSIDE])
    for params in ({}, {"background": [[24, 34, 9]]}):
        with pytest.raises(InvalidPrompt, match="place a point"):
            ask(state, label=None, **params)
    switched = ask(state, label=None, foreground=[ELSEWHERE], background=[[24, 34, 11]])
    assert not (switched.mask.astype(bool) & ORGAN).any()


def test_reset_state_starts_again(bench: Bench, state: SegmentationState) -> None:
    bench.three(state, foreground=[INSIDE])
    result = bench.three(state, foreground=[INSIDE, ELSEWHERE], reset_state=True)
    fresh = bench.three(SegmentationState(), foreground=[INSIDE, ELSEWHERE])
    assert np.array_equal(result.mask, fresh.mask)


def test_prompts_with_nothing_in_common_are_another_object(bench: Bench, state: SegmentationState) -> None:
    bench.three(state, foreground=[INSIDE])
    result = bench.three(state, foreground=[ELSEWHERE])
    assert dice(result.mask, OTHER) > 0.85
    assert not (result.mask.astype(bool) & ORGAN).any()


def test_z_range_box_depth_and_distance_limit_propagation(bench: Bench) -> None:
    assert slices_of(bench.three(SegmentationState(), foreground=[INSIDE], z_range=[11, 8])) == [8, 9, 10, 11]
    boxed = bench.three(SegmentationState(), roi=[31, 9, 44, 16, 11, 7])
    assert slices_of(boxed) == [7, 8, 9, 10, 11]
    assert boxed.details["slices_prompted"] == [9]
    assert slices_of(bench.three(SegmentationState(), foreground=[INSIDE], max_mm=5)) == [8, 9, 10]


def test_box_directions_do_not_matter(bench: Bench) -> None:
    down = bench.three(SegmentationState(), roi=[31, 9, 44, 16, 11, 7])
    up = bench.three(SegmentationState(), roi=[9, 31, 16, 44, 7, 11])
    assert np.array_equal(down.mask, up.mask)


def test_without_propagation_only_prompted_slices_change(bench: Bench, state: SegmentationState) -> None:
    assert slices_of(bench.three(state, foreground=[INSIDE], propagate=False)) == [9]
    before = bench.three(state, foreground=[INSIDE])
    after = bench.three(state, foreground=[INSIDE, [20, 8, 10]], background=[[23, 30, 12]], propagate=False)
    assert after.details["slices_changed"] == [10, 12]
    assert slices_of(after) == slices_of(before)


def test_a_slice_accepted_in_2d_stays_in_3d(bench: Bench, state: SegmentationState) -> None:
    flat = bench.two(state, foreground=[INSIDE], background=[[24, 34, 9]])
    whole = bench.three(state, foreground=[INSIDE], background=[[24, 34, 9]])
    assert np.array_equal(whole.mask[9], flat.mask[9])
    assert len(slices_of(whole)) > 5


def test_a_2d_click_on_a_propagated_slice_corrects_what_is_shown(bench: Bench, state: SegmentationState) -> None:
    whole = bench.three(state, foreground=[INSIDE])
    flat = bench.two(state, foreground=[[20, 8, 10]])
    assert flat.mask[10, 8, 20] == 1
    assert flat.mask[10][whole.mask[10] > 0].mean() > 0.9


def test_cancel_leaves_no_trace(bench: Bench, state: SegmentationState) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "propagate" and done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        segment_3d(bench.parse(3, foreground=[INSIDE]), bench.embeddings, bench.decoder, state, progress=stop)
    assert not state.prompts
    result = bench.three(state, foreground=[INSIDE])
    assert np.array_equal(result.mask, bench.three(SegmentationState(), foreground=[INSIDE]).mask)


def test_a_budget_is_kept_and_the_rest_comes_later(bench: Bench, state: SegmentationState) -> None:
    hurried = segment_3d(
        bench.parse(3, foreground=[INSIDE]),
        bench.embeddings,
        bench.decoder,
        state,
        config=PropagationConfig(budget_s=0.0),
    )
    assert slices_of(hurried) == [9]
    assert {stop["reason"] for stop in hurried.details["stops"]} == {"time"}
    assert len(slices_of(bench.three(state, foreground=[INSIDE]))) > 5


# -- several objects, images and users


def test_objects_images_and_clients_do_not_meet(bench: Bench) -> None:
    store = StateStore(8)
    other = Bench(draw_volume().with_array(draw_volume().array[:, :, ::-1].copy()))
    bench.three(store.open("a", "liver", "user-xyz"), foreground=[INSIDE])
    mirrored = other.three(store.open("b", "liver", "user-xyz"), foreground=[[43, 30, 9]])
    spleen = bench.three(store.open("a", "spleen", "user-xyz"), foreground=[ELSEWHERE])
    liver = bench.three(store.open("a", "liver", "user-xyz"), foreground=[INSIDE], background=[[23, 30, 12]])
    assert dice(mirrored.mask[:, :, ::-1], ORGAN) > 0.9
    assert dice(spleen.mask, OTHER) > 0.85
    assert liver.mask[12, 30, 23] == 0
    assert np.array_equal(spleen.mask, bench.three(store.open("a", "spleen", "user-xyz")).mask)


def test_clients_at_once_get_what_they_would_get_alone(bench: Bench) -> None:
    alone = {
        "liver": bench.three(SegmentationState(), foreground=[INSIDE]).mask,
        "spleen": bench.three(SegmentationState(), foreground=[ELSEWHERE]).mask,
    }
    store, found, errors = StateStore(8), {}, []

    def work(label: str, point: list, round_: int) -> None:
        try:
            found[label, round_] = bench.three(store.open("a", label), foreground=[point]).mask
        except Exception as error:  # a thread's failure must reach the test
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(label, point, round_))
        for round_ in range(3)
        for label, point in (("liver", INSIDE), ("spleen", ELSEWHERE))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(found) == 6
    for (label, _), mask in found.items():
        assert np.array_equal(mask, alone[label])


def test_another_recipe_or_plane_starts_again(bench: Bench, state: SegmentationState) -> None:
    bench.three(state, foreground=[INSIDE])
    again = bench.embedder.open(bench.volume, recipe=MrPercentiles(low=1.0, high=99.0))
    result = segment_3d(bench.parse(3, foreground=[INSIDE]), again, bench.decoder, state)
    fresh = segment_3d(bench.parse(3, foreground=[INSIDE]), again, bench.decoder, SegmentationState())
    assert np.array_equal(result.mask, fresh.mask)
    assert result.details["slices_decoded"] > 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_plane_of_work_gives_the_same_organ(bench: Bench, axis: int) -> None:
    plane = Plane(axis)
    embeddings = bench.embedder.open(bench.volume, recipe=MrPercentiles(), plane=plane)
    request = read_prompts({"foreground": [INSIDE]}, grid=bench.volume.grid, plane=plane, dimension=3)
    result = segment_3d(request, embeddings, bench.decoder, SegmentationState())
    assert result.mask.shape == bench.volume.shape
    assert dice(result.mask, ORGAN | SATELLITE) > 0.85


@pytest.mark.parametrize("flips", [(), (1,), (2,), (1, 2), (0, 1)])
@pytest.mark.parametrize("dimension", [2, 3])
def test_stored_orientation_does_not_matter(bench: Bench, flips: tuple[int, ...], dimension: int) -> None:
    """The same place in the patient, in an image stored another way round, finds the same anatomy."""
    volume = bench.volume
    affine = volume.affine.copy()
    for axis in flips:
        column = 2 - axis
        affine[:3, 3] += affine[:3, column] * (volume.shape[axis] - 1)
        affine[:3, column] *= -1
    stored = Bench(Volume(array=np.flip(volume.array, flips).copy(), affine=affine, modality="MR"))
    click = volume.grid.to_lps(np.array([INSIDE]))
    i, j, k = stored.volume.grid.to_ijk(click)[0].round().astype(int).tolist()
    segment = segment_2d if dimension == 2 else segment_3d
    results = [
        segment(place.parse(dimension, foreground=[point]), place.embeddings, place.decoder, SegmentationState())
        for place, point in ((bench, INSIDE), (stored, [i, j, k]))
    ]
    assert np.array_equal(results[0].mask, np.flip(results[1].mask, flips))
    assert results[0].mask.any()


def test_the_answer_says_where_it_is_uncertain(bench: Bench) -> None:
    result = bench.two(SegmentationState(), foreground=[[20, 30, 9]])
    mask, unsure = result.slice_mask(9), result.uncertainty
    np.testing.assert_array_equal(mask, result.mask[9] > 0)
    assert not result.slice_mask(3).any()
    assert unsure is not None
    assert unsure.shape == mask.shape
    assert 0 <= unsure.min() <= unsure.max() <= 1


def test_uncertainty_is_one_at_even_odds_and_falls_to_both_sides() -> None:
    logits = torch.linspace(-8, 8, 65).expand(1, 1, 65, 65)
    unsure = uncertainty(logits, Frame(65, 65, 65))
    assert unsure[:, 32] == pytest.approx(np.ones(65))
    np.testing.assert_allclose(unsure, unsure[:, ::-1], atol=1e-5)
    assert (np.diff(unsure[0, :33]) > 0).all()
    assert unsure[0, 0] < 0.001
