"""Clicks on a proposal reach the decoder as they were set, and change nothing but their own slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ORGAN, SLICES, PocketDecoder, draw_volume, labelled, quick

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.pipeline import adapt
from ssmsam.fewshot.proposals import Proposals, Target, corrected
from ssmsam.models.fewshot_decoder import Corrections, Proposal
from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.models.prompt_small import PointKind

CONFIG = quick()
INSIDE, OUTSIDE = np.array([[16.0, 18.0]]), np.array([[40.0, 4.0], [3.0, 30.0]])


class Listening(PocketDecoder):
    """Remembers the corrections and answers that the target is everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Corrections] = []

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        self.received.append(replace(corrections, previous=corrections.previous.clone()))
        return Proposal(torch.full_like(context.prior[:, 0], 7.0), torch.full((len(context.prior),), -9.0))


@pytest.fixture
def query(embedder: Embedder) -> VolumeEmbeddings:
    query = embedder.open(draw_volume())
    query.embed(range(SLICES))
    return query


@pytest.fixture
def task(embedder: Embedder, decoder: PocketDecoder) -> AdaptedTask:
    support = {"organ": labelled(embedder, draw_volume(), ORGAN, (2, 6))}
    return adapt(support, embedder, decoder, config=CONFIG)


@pytest.fixture
def proposals() -> Proposals:
    logits = np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32)
    return Proposals(np.array([1, 3, 4, 7]), logits, np.array([0.1, 0.2, 0.3, 0.4]), np.eye(4))


def test_only_clicked_slices_change(query: VolumeEmbeddings, task: AdaptedTask, proposals: Proposals) -> None:
    before = proposals.logits.copy()
    clicks = {3: SlicePrompt(positive=INSIDE), 7: SlicePrompt(negative=OUTSIDE), 8: SlicePrompt(positive=INSIDE)}
    decoder = Listening()
    found = corrected(proposals, clicks, Target(replace(task, decoder=decoder), "organ", query, CONFIG.segmentation))
    assert len(decoder.received) == 2, "slice 8 was not proposed"
    assert (found.logits[[1, 3]] == 7).all()
    np.testing.assert_array_equal(found.logits[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(proposals.logits, before)
    assert found.slices.tolist() == proposals.slices.tolist()


def test_a_positive_click_makes_the_target_present_a_negative_one_does_not_decide(
    query: VolumeEmbeddings, task: AdaptedTask, proposals: Proposals
) -> None:
    boxed = SlicePrompt(box=(8.0, 10.0, 24.0, 26.0))
    clicks = {1: SlicePrompt(positive=INSIDE), 3: SlicePrompt(negative=OUTSIDE), 4: boxed}
    found = corrected(
        proposals, clicks, Target(replace(task, decoder=Listening()), "organ", query, CONFIG.segmentation)
    )
    assert found.presence.tolist() == [1.0, 0.2, 1.0, 0.4]
    assert proposals.presence.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_the_decoder_hears_the_clicks_and_its_own_proposal(
    query: VolumeEmbeddings, task: AdaptedTask, proposals: Proposals
) -> None:
    decoder = Listening()
    clicks = {4: SlicePrompt(positive=INSIDE, negative=OUTSIDE)}
    corrected(proposals, clicks, Target(replace(task, decoder=decoder), "organ", query, CONFIG.segmentation))
    (received,) = decoder.received
    np.testing.assert_array_equal(received.previous[0, 0].numpy(), proposals.logits[2])
    kinds = received.kinds[0].tolist()
    assert sorted(kinds) == sorted([PointKind.POSITIVE, PointKind.NEGATIVE, PointKind.NEGATIVE])
    placed = received.points[0].numpy()
    expected = query.frame.points_to_input(INSIDE)
    np.testing.assert_allclose(placed[[kind == PointKind.POSITIVE for kind in kinds]], expected, atol=1e-4)


def test_clicks_move_what_a_real_decoder_says(query: VolumeEmbeddings, task: AdaptedTask, proposals: Proposals) -> None:
    """One positive point is answered otherwise than the same point as a negative one."""
    answers = [
        corrected(proposals, {4: prompt}, Target(task, "organ", query, CONFIG.segmentation)).logits[2]
        for prompt in (SlicePrompt(positive=INSIDE), SlicePrompt(negative=INSIDE))
    ]
    assert np.abs(answers[0] - answers[1]).max() > 1e-4
