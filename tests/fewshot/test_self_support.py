"""The surest slices of a volume without annotations support the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from planted import ORGAN, SLICES, PocketDecoder, draw_volume, labelled, quick

from ssmsam.encoders.embedder import Embedder
from ssmsam.encoders.encoder import Embedding
from ssmsam.fewshot.decoder import Proposal, Shown
from ssmsam.fewshot.method import FewShotConfig, adapt, segment
from ssmsam.fewshot.proposals import propose
from ssmsam.fewshot.segmentation import SegmentationConfig, looked_at_again
from ssmsam.fewshot.self_support import SelfSupportConfig, surest, worth_another_look

UNADAPTED = quick(adaptation=replace(quick().adaptation, steps=0))
SURE, UNSURE = 6.0, 0.4


class Learner(PocketDecoder):
    """Unsure of a square and of all around it, and sure of what slices of the query's own volume show."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, embedding: Embedding, shown: Shown, corrections=None, reading=None) -> Proposal:
        self.asked.append(len(shown.prior))
        own = (shown.trust.amax(1) > 0)[:, None, None]
        square = torch.full_like(shown.prior[:, 0], -UNSURE)
        square[:, 4:10, 4:10] = UNSURE
        return Proposal(torch.where(own, SURE * shown.prior[:, 0].sign(), square), torch.full((len(square),), 2.0))


@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)), st.integers(0, 6), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_only_the_surest_slices_support_and_none_of_nothing(evidence: np.ndarray, slices: int, sure: float) -> None:
    rows = surest(evidence, SelfSupportConfig(slices=slices, sure=sure))
    assert len(rows) <= slices and rows == sorted(set(rows))
    assert (evidence[rows] > 0).all() and (evidence[rows] >= sure * evidence.max()).all()
    if slices and evidence.any():
        assert int(evidence.argmax()) in rows or evidence[rows].max() == evidence.max()
    else:
        assert rows == []


def test_they_are_spread_over_the_object() -> None:
    evidence = np.array([0, 0.9, 0.95, 0.9, 0.9, 0.94, 0.9, 0.9, 0.93, 0.9, 0.0])
    assert surest(evidence, SelfSupportConfig(slices=3)) == [2, 5, 8]
    assert surest(evidence * np.linspace(1, 0.3, 11), SelfSupportConfig(slices=3, sure=0.8)) == [1]


@pytest.mark.parametrize(("reach_mm", "expected"), [(0.0, [4, 5, 6]), (10.0, [2, 3, 4, 5, 6, 7, 8])])
def test_the_volume_is_looked_at_again_around_the_object(reach_mm: float, expected: list[int]) -> None:
    found = np.isin(np.arange(12), (4, 6))
    again = worth_another_look(found, 5.0, SelfSupportConfig(reach_mm=reach_mm))
    assert np.flatnonzero(again).tolist() == expected


def test_another_patient_s_mask_is_drawn_anew_and_presence_stays(embedder: Embedder) -> None:
    decoder, query = Learner(), embedder.open(draw_volume(seed=3))
    head = adapt({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}, embedder, decoder, config=UNADAPTED)
    first = propose(decoder, head.banks, query, range(SLICES), config=SegmentationConfig())["organ"]
    second = looked_at_again(first, decoder, head.banks["organ"], query, SegmentationConfig())
    np.testing.assert_array_equal(second.presence, first.presence)
    np.testing.assert_array_equal(second.logits > 0, first.logits > 0)  # the same object
    inside = first.logits > 0
    assert second.logits[inside].min() > first.logits[inside].max()  # more surely drawn
    off = replace(SegmentationConfig(), self_support=SelfSupportConfig(slices=0))
    np.testing.assert_array_equal(looked_at_again(first, decoder, head.banks["organ"], query, off).logits, first.logits)


def test_what_lies_far_from_the_object_that_was_found_is_not_the_target(embedder: Embedder) -> None:
    decoder, query = Learner(), embedder.open(draw_volume(seed=3))
    head = adapt({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}, embedder, decoder, config=UNADAPTED)
    first = propose(decoder, head.banks, query, range(SLICES), config=SegmentationConfig())["organ"]
    far = np.arange(SLICES) >= SLICES - 2
    first = replace(first, presence=np.where(far, 0.2, first.presence))
    for reach_mm, lost in ((0.0, far), (5.0 * SLICES, np.zeros(SLICES, dtype=bool))):
        config = replace(SegmentationConfig(), self_support=SelfSupportConfig(reach_mm=reach_mm))
        again = looked_at_again(first, decoder, head.banks["organ"], query, config)
        np.testing.assert_array_equal(again.presence, np.where(lost, 0.0, first.presence))


def test_an_annotated_volume_and_an_empty_one_are_left_alone(embedder: Embedder) -> None:
    decoder = Learner()
    head = adapt({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}, embedder, decoder, config=UNADAPTED)
    for query, shift in ((embedder.open(draw_volume()), 0.0), (embedder.open(draw_volume(seed=3)), -20.0)):
        first = propose(decoder, head.banks, query, range(SLICES), config=SegmentationConfig())["organ"]
        first = replace(first, logits=first.logits + shift)
        decoder.asked.clear()
        assert looked_at_again(first, decoder, head.banks["organ"], query, SegmentationConfig()) is first
        assert not decoder.asked


def test_segmentation_of_another_patient_looks_twice(embedder: Embedder) -> None:
    decoder, query = Learner(), embedder.open(draw_volume(seed=3))
    head = adapt({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}, embedder, decoder, config=UNADAPTED)
    once = FewShotConfig(segmentation=replace(UNADAPTED.segmentation, self_support=SelfSupportConfig(slices=0)))
    unsure, sure = (segment(query, head, config=config).uncertainty for config in (once, UNADAPTED))
    assert sure.mean() < 0.5 * unsure.mean()
