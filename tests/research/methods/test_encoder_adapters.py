"""Adaptors in a frozen encoder: what the filter leaves, what trains, and the full online mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ORGAN, OTHER, PocketEncoder, draw_volume, labelled
from published_lite import TINY
from tiny_sam import tiny_sam

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import AdaptationConfig, ViewConfig
from ssmsam.fewshot.pipeline import segment
from ssmsam.models.fewshot_sam import SamTargetNetwork
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.sam_encoder import LiteMedSamEncoder, Projection, Reduction, SamEncoder, use_headwise_attention
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.models.tiny_vit import build_lite_medsam
from ssmsam.progress import Cancelled
from ssmsam_research.methods.encoder_adapters import AdaptedEncoder, adapt_online, adapted_encoder, high_pass

SHORT = AdaptationConfig(steps=2, budget_s=float("inf"), batch=2, views=ViewConfig(views=0))


@pytest.fixture
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


def small() -> SmallEncoder:
    torch.manual_seed(0)
    return SmallEncoder(weights_sha256="random small").eval().requires_grad_(False)


def sam() -> SamEncoder:
    whole = use_headwise_attention(tiny_sam()).requires_grad_(False)
    return SamEncoder(whole, name="sam_vit_b", weights_sha256="random sam")


def lite() -> LiteMedSamEncoder:
    torch.manual_seed(0)
    whole = build_lite_medsam(TINY).eval().requires_grad_(False)
    widths = {"image": 256, "stage2": TINY.widths[1], "stage4": TINY.widths[3]}
    kept = {name: Projection(torch.zeros(width), torch.eye(width)) for name, width in widths.items()}
    return LiteMedSamEncoder(whole, weights_sha256="random lite", reduction=Reduction(kept, "d" * 64))


@pytest.mark.parametrize("make", [small, sam, lite])
def test_they_change_nothing_until_they_are_trained(make) -> None:
    base = make()
    adapted = adapted_encoder(base)
    slices = torch.rand(1, 3, base.spec.input_size, base.spec.input_size)
    assert torch.allclose(adapted.encode(slices)["image"], base.encode(slices)["image"], atol=1e-4)
    assert adapted.weights_sha256 != base.weights_sha256


@pytest.mark.parametrize("make", [small, sam, lite])
def test_they_alone_have_a_gradient_and_change_the_embedding(make) -> None:
    base = make()
    adapted = adapted_encoder(base)
    slices = torch.rand(1, 3, base.spec.input_size, base.spec.input_size)
    before, digest = base.encode(slices)["image"], adapted.weights_sha256
    optimiser = torch.optim.SGD(adapted.parameters(), lr=1.0)
    for _ in range(2):  # the first step opens the way for the parts before the last layer
        optimiser.zero_grad()
        adapted.encode(slices)["image"].square().mean().backward()
        optimiser.step()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapted.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert torch.equal(base.encode(slices)["image"], before)
    assert not torch.allclose(adapted.encode(slices)["image"], before)
    assert adapted.weights_sha256 != digest


def test_sam_adaptors_are_as_large_as_published() -> None:
    from ssmsam.models.sam_encoder import build_sam

    encoder = SamEncoder(build_sam("vit_b"), name="sam_vit_b", weights_sha256="random")
    count = sum(parameter.numel() for parameter in adapted_encoder(encoder).parameters())
    assert count == 63_312


def test_the_filter_removes_what_is_smooth_and_keeps_edges() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    smooth = torch.cos(2 * np.pi * 3 * x / 64)[None, None].expand(1, 3, -1, -1)
    fine = torch.cos(2 * np.pi * 28 * y / 64)[None, None].expand(1, 3, -1, -1)
    assert high_pass(smooth).max() < 1e-4
    assert torch.allclose(high_pass(smooth + fine), fine.abs(), atol=1e-4)


def test_an_encoder_without_a_place_for_them_is_refused(embedder: Embedder) -> None:
    with pytest.raises(TypeError, match="mode without them"):
        adapted_encoder(embedder.encoder)


@pytest.fixture
def support_of():
    def made(embedder: Embedder):
        volume = draw_volume()
        return volume, {
            "organ": labelled(embedder, volume, ORGAN, (2, 4, 6)),
            "other": labelled(embedder, volume, OTHER, (4, 5)),
        }

    return made


def test_the_full_mode_adapts_encoder_and_decoder(support_of) -> None:
    embedder = Embedder(encoder=small())
    torch.manual_seed(1)
    decoder = SelfSamplingDecoder(TargetNetwork(), width=128).eval().requires_grad_(False)
    volume, support = support_of(embedder)
    base = {name: tensor.clone() for name, tensor in embedder.encoder.state_dict().items()}
    online = adapt_online(support, embedder, decoder, config=SHORT)
    assert len(online.losses) == 2
    assert isinstance(online.encoder, AdaptedEncoder)
    assert all(torch.equal(tensor, base[name]) for name, tensor in embedder.encoder.state_dict().items())
    assert any(
        not torch.equal(a, b) for a, b in zip(online.task.decoder.parameters(), decoder.parameters(), strict=True)
    )
    assert online.task.card["weights_sha256"] == online.encoder.weights_sha256
    prediction = segment(online.embedder.open(volume), online.task, slices=(3, 4, 5))
    assert prediction.labels == ("organ", "other")
    assert prediction.mask.shape == volume.shape
    # labelled slices are known again under the adapted encoder's own embeddings
    assert set(online.task.banks["organ"].volumes) == {online.embedder.open(volume).key.digest}


def test_the_full_mode_works_on_lite_medsam(support_of) -> None:
    """Embeddings of the adapted encoder are kept as reduced as those of the frozen one."""
    embedder = Embedder(encoder=lite(), bfloat16=False)
    decoder = SamTargetNetwork(embedder.encoder.sam).eval().requires_grad_(False)
    volume, support = support_of(embedder)
    online = adapt_online(support, embedder, decoder, config=replace(SHORT, steps=1))
    assert len(online.losses) == 1
    assert online.encoder.spec == embedder.encoder.spec
    assert segment(online.embedder.open(volume), online.task, slices=(3,)).mask.shape == volume.shape


def test_the_full_mode_can_be_stopped(support_of) -> None:
    embedder = Embedder(encoder=small())
    _, support = support_of(embedder)

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "adapt" and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        adapt_online(support, embedder, TargetNetwork().requires_grad_(False), config=SHORT, progress=progress)


def test_its_time_is_bounded(support_of) -> None:
    embedder = Embedder(encoder=small())
    _, support = support_of(embedder)
    config = replace(SHORT, steps=1000, budget_s=0.5)
    online = adapt_online(support, embedder, TargetNetwork().requires_grad_(False), config=config)
    assert 1 <= len(online.losses) < 100
