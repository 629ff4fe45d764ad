"""Which start SSM-SAM's decoder has, for which weights."""

from __future__ import annotations

import pytest
import torch

from ssmsam.models.registry import ENCODERS, load_encoder, load_ssm_decoder, load_target_decoder
from ssmsam.models.weights import PACKAGED, entry, made_for, sha256_of
from ssmsam_research.model_choice import ModelChoice


def test_the_shipped_encoder_has_a_start_of_its_own() -> None:
    decoder = load_ssm_decoder("small")
    inner = load_target_decoder("small").state_dict()
    assert any(not torch.equal(tensor, inner[name]) for name, tensor in decoder.inner.state_dict().items())
    assert decoder.sampling.out.weight.abs().max() > 0 and decoder.mask_attention.out.weight.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_the_packaged_start_is_the_manifests_and_belongs_to_the_packaged_encoder() -> None:
    path = PACKAGED / entry("small_ssm").file
    assert sha256_of(path) == entry("small_ssm").sha256
    assert made_for(path) == entry("small").sha256
    assert path.with_suffix(".md").is_file(), "no weights without a model card"
    assert path.stat().st_size < 15e6


def test_other_weights_begin_with_their_own_decoder(random_small: ModelChoice) -> None:
    decoder = load_ssm_decoder("small", folder=random_small.weights, allow_unverified=True)
    inner = load_target_decoder("small", folder=random_small.weights, allow_unverified=True).state_dict()
    assert all(torch.equal(tensor, inner[name]) for name, tensor in decoder.inner.state_dict().items())
    assert decoder.sampling.out.weight.abs().max() == 0 and decoder.mask_attention.out.weight.abs().max() == 0


def test_a_start_is_no_encoder() -> None:
    assert "small_ssm" not in ENCODERS
    with pytest.raises(ValueError, match="unknown encoder"):
        load_encoder("small_ssm")
