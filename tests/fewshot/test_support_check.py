"""What labelled slices say of the decoder, each answered by the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import ORGAN, PocketDecoder, draw_volume, labelled, quick

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.episodes import AdaptationTask, adaptation_tasks
from ssmsam.fewshot.estimate import SupportCheck, check_support, held_out_answers
from ssmsam.models.fewshot_decoder import Proposal


class Echo(PocketDecoder):
    """Answers with its prior; says that the target is where the prior does."""

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(context.prior[:, 0], context.prior.amax((1, 2, 3)))


def adaptation_task(
    embedder: Embedder, slices: tuple[int, ...], decoder: PocketDecoder, mask: np.ndarray = ORGAN
) -> AdaptationTask:
    config = quick().adaptation
    support = {"organ": labelled(embedder, draw_volume(), mask, slices)}
    return adaptation_tasks(support, embedder, decoder, config=config)["organ"][0]


def checked(decoder: PocketDecoder, one: AdaptationTask) -> SupportCheck:
    return check_support(one, held_out_answers(decoder, one))


def test_with_one_slice_nothing_is_known(embedder: Embedder) -> None:
    found = checked(Echo(), adaptation_task(embedder, (4,), Echo()))
    assert (found.dice, found.presence, found.absence, found.slices) == (None, None, None, 0)


def test_a_slice_is_never_its_own_answer(embedder: Embedder) -> None:
    """A mask that is nowhere near its neighbours cannot be known from them."""
    moved = ORGAN.copy()
    moved[4] = np.roll(ORGAN[4], 24, axis=1)
    alike, apart = (checked(Echo(), adaptation_task(embedder, (3, 4, 5), Echo(), mask)) for mask in (ORGAN, moved))
    assert alike.dice is not None and apart.dice is not None
    assert 0.8 < alike.dice <= 1
    assert apart.dice < alike.dice - 0.2


def test_presence_where_it_is_and_where_it_is_not(embedder: Embedder) -> None:
    found = checked(Echo(), adaptation_task(embedder, (0, 3, 4, 5), Echo()))
    assert found.presence is not None and found.absence is not None
    assert 0 <= found.absence <= 1 and 0 <= found.presence <= 1
    assert found.slices == 3


@pytest.mark.parametrize("count", [2, 9])
def test_batches_change_nothing(embedder: Embedder, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = adaptation_task(embedder, tuple(range(count)), PocketDecoder())
    torch.manual_seed(0)
    decoder = PocketDecoder()
    at_once = checked(decoder, one)
    monkeypatch.setattr("ssmsam.fewshot.estimate.BATCH", 1)
    alone = checked(decoder, one)
    assert at_once.dice == pytest.approx(alone.dice, abs=1e-4)
    assert at_once.presence == pytest.approx(alone.presence, abs=1e-4)
