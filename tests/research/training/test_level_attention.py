"""Mask attention on further maps of the encoder: begins without effect, and reads what the encoder gives."""

from __future__ import annotations

import pytest
import torch
from planted import PocketDecoder, PocketEncoder, tasks_of, two_labels
from pocket_ssm import pocket_ssm

from ssmsam.embeddings.embedder import Embedder
from ssmsam.models.self_sampling import VALUES, SelfSamplingDecoder
from ssmsam_research.training.level_attention import LevelledDecoder


@pytest.fixture
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


def query_batch_of(embedder: Embedder, decoder: SelfSamplingDecoder):
    return tasks_of(two_labels(embedder), embedder, decoder)["organ"][0].query_batch((0, 1))


def test_mask_attention_reads_further_levels_where_it_was_trained_to(embedder: Embedder) -> None:
    channels = embedder.encoder.spec.level_channels[-1:]
    plain, levelled = pocket_ssm(), LevelledDecoder(PocketDecoder(), width=128, channels=channels)
    levelled.eval().requires_grad_(False).begin_with(plain.state_dict())
    query_batch = query_batch_of(embedder, plain)

    def answer(decoder: SelfSamplingDecoder) -> torch.Tensor:
        return decoder(query_batch.embedding, query_batch.context).logits

    assert torch.equal(answer(levelled), answer(plain)), "a start that knows nothing of levels begins as it was"
    levelled.levels.gains.fill_(0.5)
    assert not torch.allclose(answer(levelled), answer(plain), atol=1e-3)
    maps, masks = query_batch.embedding["levels"], torch.rand(2, VALUES, 32, 32)
    other = [*maps[:-1], maps[-1].flip(-1)]
    said, said_of_other = (levelled.levels(one, masks, levelled.mask_attention) for one in (maps, other))
    assert said.shape == (2, 128, 32, 32) and not torch.allclose(said, said_of_other, atol=1e-3)
    adaptable = {id(parameter) for parameter in levelled.adaptable()}
    assert all(id(parameter) in adaptable for parameter in levelled.levels.parameters())


def test_levels_that_an_encoder_does_not_give_are_missed(embedder: Embedder) -> None:
    decoder = LevelledDecoder(PocketDecoder(), width=128, channels=(16, 48)).eval()
    query_batch = query_batch_of(embedder, decoder)
    with pytest.raises(ValueError, match="load the encoder with its levels"):
        decoder({"image": query_batch.embedding["image"], "levels": []}, query_batch.context)
