"""What labelled volumes let one expect of the target in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import AFFINE, ORGAN, PocketDecoder, draw_volume, labelled, quick

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.bank import Bank
from ssmsam.fewshot.ends import EndsConfig, one_object
from ssmsam.fewshot.expectation import Expectation, ExpectationConfig, expected, laid_beside
from ssmsam.fewshot.method import adapt
from ssmsam.imaging.orientation import reoriented
from ssmsam.imaging.volume import Volume

CONFIG = ExpectationConfig()
UNADAPTED = quick(adaptation=replace(quick().adaptation, steps=0))


def body(places: np.ndarray) -> np.ndarray:
    """Looks (n, 5) of slices that change along a body."""
    waves = [np.sin(places / period + phase) for period, phase in ((90, 0), (60, 1), (45, 2), (35, 4), (70, 3))]
    return np.stack(waves, axis=1)


@given(scale=st.sampled_from([0.92, 1.0, 1.08]), offset=st.integers(-20, 16).map(lambda n: 5.0 * n))
@settings(max_examples=25, deadline=None)
def test_volumes_are_laid_beside_each_other_by_how_slices_look(scale: float, offset: float) -> None:
    places, other = np.arange(0, 300, 12.0), np.arange(0, 320, 4.0)
    found = laid_beside(places, body(places), other, body((other - offset) / scale))
    assert found is not None
    assert scale * 150 + offset == pytest.approx(found[0] * 150 + found[1], abs=10)


def test_too_few_slices_are_not_laid_beside() -> None:
    places = np.arange(0, 30, 10.0)
    assert laid_beside(places, body(places), np.arange(0, 300, 5.0), body(np.arange(0, 300, 5.0))) is None


def an_object(length: int, side: int, start: int, count: int = 40, grid: int = 32) -> np.ndarray:
    mask = np.zeros((count, grid, grid), dtype=bool)
    mask[start : start + length, 2 : 2 + side, 2 : 2 + side] = True
    return mask


def test_the_more_an_object_differs_from_what_was_labelled_the_less_plausible_it_is() -> None:
    positions = np.arange(40) * 5.0
    wanted = Expectation(area_mm2=64.0 * 4, length_mm=50.0, middles_mm=(97.5,), config=CONFIG)

    def plausibility(length: int, side: int, start: int) -> float:
        return wanted.plausibility(an_object(length, side, start), positions, cell_mm=2.0)

    assert plausibility(10, 8, 15) == pytest.approx(wanted.plausibility(an_object(10, 8, 15), positions, 2.0))
    assert plausibility(10, 8, 15) > -0.01
    for worse, worst in (((10, 12, 15), (10, 20, 15)), ((5, 8, 17), (2, 8, 19)), ((10, 8, 20), (10, 8, 29))):
        assert 0 > plausibility(*worse) > plausibility(*worst)
    nothing_known = Expectation(area_mm2=0.0, length_mm=0.0, config=CONFIG)
    assert nothing_known.plausibility(an_object(3, 20, 2), positions, 2.0) == 0


def test_a_plausible_object_is_preferred_to_one_with_a_little_more_evidence() -> None:
    masks = an_object(10, 20, 2) | an_object(10, 8, 25)
    evidence = np.where(np.arange(40) < 15, 0.7, 0.6) * masks.any(axis=(1, 2))
    size = {True: 0.0, False: -2.0}

    def plausibility(found: np.ndarray) -> float:
        return size[bool(found.sum(axis=(1, 2)).max() < 100)]

    surest = one_object(masks, evidence, EndsConfig())
    np.testing.assert_array_equal(surest, an_object(10, 20, 2))
    chosen = one_object(masks, evidence, EndsConfig(), plausibility=plausibility, candidates=3)
    np.testing.assert_array_equal(chosen, an_object(10, 8, 25))


def test_what_is_expected_comes_from_the_annotated_slices(embedder: Embedder) -> None:
    slices = {"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}
    bank = adapt(slices, embedder, PocketDecoder(), complete=False, config=UNADAPTED).banks["organ"]
    query = embedder.open(draw_volume(seed=3))
    positions = np.array([query.position_mm(index) for index in range(query.count)])
    found = expected(bank, None, positions, CONFIG)
    area = ORGAN[[2, 4, 6]].sum(axis=(1, 2)).mean() * 1.5**2
    assert found.area_mm2 == pytest.approx(area, rel=0.1)
    assert found.length_mm == pytest.approx(4 * 5.0 * 3 / 2)
    assert found.middles_mm == ()


@pytest.mark.parametrize("annotated", [(4,), (2, 4, 6), (1, 7)])
def test_completed_slices_say_how_long_the_target_is(embedder: Embedder, annotated: tuple[int, ...]) -> None:
    def bank_of(slices: Sequence[int]) -> Bank:
        return Bank.of(labelled(embedder, draw_volume(), ORGAN, slices), PocketDecoder())

    others = [index for index in range(len(ORGAN)) if index not in annotated]
    bank = bank_of(annotated).with_completed(bank_of(others))
    shown = int(ORGAN.any(axis=(1, 2)).sum())
    assert shown < len(ORGAN)
    found = expected(bank, None, np.arange(9) * 5.0, CONFIG)
    assert found.length_mm == pytest.approx(5.0 * shown)
    cut_off = bank.without([k for k in range(len(bank)) if bank.positions[k] > 20])
    assert expected(cut_off, None, np.arange(9) * 5.0, CONFIG).length_mm == 0, "it goes on beyond the volume's end"
    if len(annotated) == 1:
        assert expected(bank_of(annotated), None, np.arange(9) * 5.0, CONFIG).length_mm == 0


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LPI", "RAI"])
def test_positions_grow_the_same_way_through_every_body(embedder: Embedder, codes: str) -> None:
    stored = reoriented(draw_volume(affine=AFFINE), codes)
    opened = embedder.open(stored)
    heights = [(stored.affine @ [0, 0, index, 1])[2] for index in range(opened.count)]
    positions = [opened.position_mm(index) for index in range(opened.count)]
    upright = embedder.open(draw_volume(affine=AFFINE))
    upwards = (upright.position_mm(1) - upright.position_mm(0)) / AFFINE[2, 2]
    np.testing.assert_allclose(np.diff(positions), upwards * np.diff(heights))
    assert [opened.index_at(position) for position in positions] == list(range(opened.count))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LPI", "RAI"])
def test_the_body_is_found_at_the_same_place_however_a_volume_is_stored(embedder: Embedder, codes: str) -> None:
    body = np.zeros(ORGAN.shape, dtype=np.float32)
    body[:, 6:26, 10:44] = 100.0
    body[0, 2, 2] = 400.0  # the volume's brightest voxel is no body
    volume = Volume(body, AFFINE, modality="MR")
    upright, turned = embedder.open(volume), embedder.open(reoriented(volume, codes))
    for index in range(upright.count):
        same = turned.index_at(upright.position_mm(index))
        np.testing.assert_allclose(turned.body_centres[same], upright.body_centres[index], atol=0.51)
    (middle,) = upright.frame.points_to_input(np.array([[26.5, 15.5]]))
    np.testing.assert_allclose(upright.body_centres[4], middle, atol=1.5)
