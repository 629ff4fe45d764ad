"""The default encoder, as everyone gets it."""

from __future__ import annotations

import pytest
import torch

from fakes import a_volume
from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.models.registry import load_encoder
from ssmsam.models.weights import MissingWeights


def test_the_small_encoder_through_memory_and_disk(tmp_path):
    try:
        encoder = load_encoder("small")
    except MissingWeights as error:
        pytest.skip(str(error))
    assert not encoder.training
    assert len(encoder.weights_sha256) == 64
    first = Embedder(encoder=encoder, store=EmbeddingStore(tmp_path)).open(a_volume(slices=5))
    first.embed()
    embedder = Embedder(encoder=encoder, store=EmbeddingStore(tmp_path))
    second = embedder.open(a_volume(slices=5))
    spec = encoder.spec
    with torch.inference_mode():
        expected = encoder.encode(second.inputs([2]))
    for found in (first.slice(2), second.slice(2)):
        assert found["image"].shape == (1, spec.channels, *[spec.input_size // spec.stride] * 2)
        assert [level.shape[1] for level in found["levels"]] == list(spec.level_channels)
        for tensor, precise in zip(
            [found["image"], *found["levels"]], [expected["image"], *expected["levels"]], strict=True
        ):
            torch.testing.assert_close(tensor, precise, rtol=1e-2, atol=1e-2)
    assert embedder.encoded == 0
