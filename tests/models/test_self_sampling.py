"""Self-sampling and mask attention: what they read, what they change, and that nothing of the query's truth leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ALL, ORGAN, OTHER, QUICK, PocketDecoder, draw_volume, labelled, quick, tasks_of, two_labels
from pocket_ssm import pocket_ssm

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.self_sampling import SelfSamplingConfig, SelfSamplingDecoder, sampled
from ssmsam.models.support_encoding import LEAST_SHARE


def query_batch_of(embedder: Embedder, decoder: SelfSamplingDecoder, numbers: tuple[int, ...] = (0, 1)):
    return tasks_of(two_labels(embedder), embedder, decoder)["organ"][0].query_batch(numbers)


def test_it_begins_with_the_answer_of_the_decoder_inside(embedder: Embedder) -> None:
    inner = PocketDecoder()
    outer = SelfSamplingDecoder(inner, width=128).eval()
    query_batch = query_batch_of(embedder, inner)
    assert torch.equal(
        outer(query_batch.embedding, query_batch.context).logits,
        inner(query_batch.embedding, query_batch.context).logits,
    )


@pytest.mark.parametrize("module", ["self_sampling", "mask_attention"])
def test_each_module_changes_the_answer_and_can_be_left_out(embedder: Embedder, module: str) -> None:
    decoder = pocket_ssm()
    query_batch = query_batch_of(embedder, decoder)
    whole = decoder(query_batch.embedding, query_batch.context).logits
    decoder.config = replace(decoder.config, **{module: False})
    assert not torch.allclose(decoder(query_batch.embedding, query_batch.context).logits, whole, atol=1e-3)


def test_a_kept_reading_gives_the_same_answer(embedder: Embedder) -> None:
    decoder = pocket_ssm()
    query_batch = query_batch_of(embedder, decoder)
    kept = decoder(query_batch.embedding, query_batch.context, features=query_batch.features).logits
    assert torch.allclose(kept, decoder(query_batch.embedding, query_batch.context).logits, atol=1e-4)


def test_points_lie_where_the_support_says_and_are_read_from_its_image(embedder: Embedder) -> None:
    slices = labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))
    bank = SupportBank.of(slices, PocketDecoder())
    context = bank.context_at("elsewhere", [0.0], bank.descriptors[:1], bank.centres[:1], config=QUICK.bank)
    points = sampled(context, SelfSamplingConfig(target=9, ring=6, far=6))
    assert points.features.shape == (1, 21, 128)
    assert points.valid.all()
    assert (points.shares[points.kinds == 0] > LEAST_SHARE).all()
    assert (points.shares[points.kinds > 0] <= LEAST_SHARE).all()
    maps = torch.cat([one.embeddings.slice(one.index)["image"] for one in slices]).flatten(2).transpose(1, 2)
    distance = torch.cdist(points.features[0], maps.flatten(0, 1)).amin(1)
    assert distance.max() < 1e-2
    per_slice = [int((torch.cdist(points.features[0][:9], cells).amin(1) < 1e-2).sum()) for cells in maps]
    assert per_slice == [3, 3, 3], "each support slice has its turn"


def test_more_points_than_the_support_has_are_marked(embedder: Embedder) -> None:
    decoder = pocket_ssm(config=SelfSamplingConfig(target=64, ring=64, far=200))
    query_batch = query_batch_of(embedder, decoder)
    points = sampled(query_batch.context, decoder.config)
    assert not points.valid.all()
    before = decoder(query_batch.embedding, query_batch.context).logits
    cells = torch.where(query_batch.context.valid[..., None], query_batch.context.cells, 100.0)
    noisy = decoder.sampling(query_batch.embedding["image"], replace(query_batch.context, cells=cells))
    assert torch.allclose(noisy, decoder.sampling(query_batch.embedding["image"], query_batch.context), atol=1e-4)
    assert before.isfinite().all()


def test_large_maps_are_pooled_and_small_ones_are_not() -> None:
    decoder = pocket_ssm()
    torch.manual_seed(3)
    image, masks = torch.randn(1, 128, 16, 16), torch.rand(1, 4, 16, 16)
    exact = decoder.mask_attention(image, masks)
    decoder.mask_attention.config = replace(decoder.mask_attention.config, most_keys=64)
    pooled = decoder.mask_attention(image, masks)
    assert pooled.shape == exact.shape
    assert not torch.allclose(pooled, exact)
    decoder.mask_attention.config = replace(decoder.mask_attention.config, most_keys=256)
    assert torch.equal(decoder.mask_attention(image, masks), exact)


@pytest.mark.parametrize("steps", [0, 2])
def test_the_truth_of_the_query_changes_nothing(embedder: Embedder, steps: int) -> None:
    """The published code samples its points from the masks of the slices that it scores. Ours cannot reach them."""
    rng = np.random.default_rng(1)
    garbage = rng.random(ORGAN.shape) > 0.5
    config = quick(adaptation=replace(QUICK, steps=steps))
    answers = []
    for truth in (ORGAN, garbage, np.zeros_like(ORGAN)):
        given = np.where(np.isin(ALL, (2, 6))[:, None, None], ORGAN, truth)  # truth where it is annotated only
        own, other = draw_volume(), draw_volume(seed=5)
        support = {"organ": [*labelled(embedder, own, given, (2, 6)), *labelled(embedder, other, OTHER, (5,))]}
        task = adapt(support, embedder, pocket_ssm(), config=config)
        answers.append(segment(embedder.open(own), task, config=config))
    for other in answers[1:]:
        assert np.array_equal(answers[0].logits, other.logits)
        assert np.array_equal(answers[0].mask, other.mask)


def test_the_same_twice_is_the_same_to_the_bit(embedder: Embedder) -> None:
    support = two_labels(embedder)
    tasks = [adapt(support, embedder, pocket_ssm(), config=quick()) for _ in range(2)]
    states = [task.decoder.state_dict() for task in tasks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
