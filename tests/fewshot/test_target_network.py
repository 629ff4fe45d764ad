"""The token-query decoder as a function of its context."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import PocketDecoder

from ssmsam.embeddings.embedder import stacked
from ssmsam.fewshot.episodes import padded, picked
from ssmsam.fewshot.support_bank import gathered_context
from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import Corrections, DecoderContext, Proposal
from ssmsam.models.prompt_small import PointKind
from ssmsam.models.support_encoding import TokenKind, describe

SIDE, STRIDE = 64, 8


def embedding(count: int, seed: int = 0, side: int = SIDE) -> Embedding:
    draw = torch.Generator().manual_seed(seed)
    sizes = ((128, 8), (16, 2), (48, 4))
    image, *levels = [torch.randn(count, c, side // s, side // s, generator=draw) for c, s in sizes]
    return {"image": image, "levels": levels}


def context(queries: int, supports: int, side: int = SIDE) -> DecoderContext:
    """Every query has the same slices as context, at different distances."""
    half = side // 2
    masks = torch.zeros(supports, 1, half, half)
    masks[..., half // 4 : half // 2, half // 4 : half // 2] = 1
    description = describe(embedding(supports, seed=1, side=side)["image"], masks, torch.ones_like(masks), STRIDE)
    near = torch.linspace(0.1, 0.9, queries)[:, None].expand(-1, supports)
    prior = torch.randn(queries, 1, half, half, generator=torch.Generator().manual_seed(2))
    trust = torch.tensor([[1.0, 0.7]]).expand(queries, -1)
    return gathered_context(description, torch.arange(supports).expand(queries, -1), near, prior, trust)


def rows(one: DecoderContext, index: slice) -> DecoderContext:
    return DecoderContext(**{name: value[index] for name, value in vars(one).items()})


def agree(one: Proposal, other: Proposal, atol: float = 1e-4) -> None:
    torch.testing.assert_close(one.logits, other.logits, atol=atol, rtol=1e-4)
    torch.testing.assert_close(one.presence, other.presence, atol=atol, rtol=1e-4)


@torch.no_grad()
def test_a_query_is_answered_the_same_alone_and_in_a_batch(decoder: PocketDecoder) -> None:
    several, queried = embedding(4), context(4, 3)
    together = decoder(several, queried)
    assert together.logits.shape == (4, SIDE // 2, SIDE // 2)
    for number in range(4):
        index = slice(number, number + 1)
        alone = decoder(picked(several, [number]), rows(queried, index))
        agree(alone, Proposal(together.logits[index], together.presence[index]))
    assert not torch.allclose(together.logits[0], together.logits[1])


@torch.no_grad()
def test_missing_cells_are_not_read(decoder: PocketDecoder) -> None:
    query = embedding(1)
    alone = context(1, 2)
    beside = padded([alone, context(1, 5)])
    beside = rows(replace(beside, cells=beside.cells + 50.0 * ~beside.valid[..., None]), slice(0, 1))
    assert beside.valid.shape[1] > alone.valid.shape[1]
    one, same = decoder.cross_attention(query, alone), decoder.cross_attention(query, beside)
    torch.testing.assert_close(one.cells, same.cells, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.votes, same.votes, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_a_missing_token_holds_does_not_matter(decoder: PocketDecoder) -> None:
    beside = rows(padded([context(1, 2), context(1, 5)]), slice(0, 1))
    missing = (beside.kinds == TokenKind.NONE)[..., None]
    assert missing.any()
    noise = torch.randn(beside.tokens.shape, generator=torch.Generator().manual_seed(3))
    changed = replace(beside, tokens=beside.tokens + noise * missing, near=beside.near + 9 * missing[..., 0])
    agree(decoder(embedding(1), beside), decoder(embedding(1), changed), atol=1e-6)


@torch.no_grad()
def test_a_reading_that_was_kept_gives_the_same_answer(decoder: PocketDecoder) -> None:
    query, queried = embedding(2), context(2, 3)
    features = decoder.cross_attention(query, queried)
    agree(decoder(query, queried), decoder(query, queried, features=features), atol=1e-6)
    other = decoder(query, queried, features=replace(features, votes=features.votes * 0))
    assert not torch.allclose(decoder(query, queried).logits, other.logits)


@torch.no_grad()
def test_a_prior_without_trust_is_not_looked_at(decoder: PocketDecoder) -> None:
    queried = replace(context(1, 2), trust=torch.zeros(1, 2))
    other = replace(queried, prior=queried.prior * -30)
    agree(decoder(embedding(1), queried), decoder(embedding(1), other), atol=0)
    trusted = replace(queried, trust=torch.ones(1, 2))
    assert not torch.allclose(decoder(embedding(1), queried).logits, decoder(embedding(1), trusted).logits)


@torch.no_grad()
def test_votes_are_shares_of_what_was_read(decoder: PocketDecoder) -> None:
    queried = context(2, 3)
    every = replace(queried, shares=torch.ones_like(queried.shares))
    votes = decoder.cross_attention(embedding(2), queried).votes[:, 2:]
    assert votes.min() >= 0 and votes.max() <= 1
    torch.testing.assert_close(decoder.cross_attention(embedding(2), every).votes[:, 2:], torch.ones_like(votes))


@pytest.mark.parametrize("side", [32, 96])
@torch.no_grad()
def test_any_input_size_will_do(decoder: PocketDecoder, side: int) -> None:
    found = decoder(embedding(1, side=side), context(1, 2, side=side))
    assert found.logits.shape == (1, side // 2, side // 2)
    assert found.logits.isfinite().all()


def test_gradients_reach_what_adapts_and_nothing_else(decoder: PocketDecoder) -> None:
    kinds = torch.tensor([[int(kind) for kind in PointKind]]).expand(2, -1)
    points = torch.rand(2, kinds.shape[1], 2, generator=torch.Generator().manual_seed(4)) * SIDE
    corrections = Corrections(points, kinds, torch.randn(2, 1, SIDE // 2, SIDE // 2))
    queried = context(2, 3)
    queried = replace(queried, kinds=queried.kinds.clone())
    queried.kinds[:, -1] = TokenKind.NONE  # every kind of token is met
    for parameter in decoder.adaptable():
        parameter.requires_grad_(True)
    proposal = decoder(embedding(2), queried, corrections)
    (proposal.logits.square().mean() + proposal.presence.square().mean()).backward()
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    adaptable = {names[id(parameter)] for parameter in decoder.adaptable()}
    reached = {name for name, p in decoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert adaptable - reached == set()
    assert reached == adaptable
    assert {name.split(".")[0] for name in set(names.values()) - adaptable} == {"reading"}


def test_what_is_read_does_not_depend_on_what_adapts(decoder: PocketDecoder) -> None:
    before = decoder.cross_attention(embedding(1), context(1, 2))
    with torch.no_grad():
        for parameter in decoder.adaptable():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
    after = decoder.cross_attention(embedding(1), context(1, 2))
    assert torch.equal(before.cells, after.cells)
    assert torch.equal(before.votes, after.votes)


def test_batches_are_put_together_in_order() -> None:
    both = stacked([embedding(2, seed=1), embedding(1, seed=2)])
    assert torch.equal(both["image"][2:], embedding(1, seed=2)["image"])
    assert torch.equal(picked(both, [2, 0])["levels"][1], torch.stack([both["levels"][1][n] for n in (2, 0)]))
