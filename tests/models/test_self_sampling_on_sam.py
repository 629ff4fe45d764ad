"""SSM-SAM behind SAM's encoder: random weights, so this is about shapes, gradients, caching and time, not quality."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from planted import ORGAN, QUICK, draw_volume, labelled, quick
from tiny_sam import tiny_sam

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.models.fewshot_sam import SamTargetNetwork
from ssmsam.models.sam_encoder import SamEncoder
from ssmsam.models.self_sampling import SelfSamplingDecoder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(encoder=SamEncoder(tiny_sam(), name="sam_vit_b", weights_sha256="random").requires_grad_(False))


@pytest.fixture(scope="module")
def decoder() -> SelfSamplingDecoder:
    torch.manual_seed(0)
    inner = SamTargetNetwork(tiny_sam())
    return SelfSamplingDecoder(inner, width=256).eval().requires_grad_(False)


def test_it_adapts_on_cached_embeddings_and_segments(embedder: Embedder, decoder: SelfSamplingDecoder) -> None:
    volume = draw_volume()
    support = {"organ": labelled(embedder, volume, ORGAN, (2, 4, 6))}
    config = quick(adaptation=replace(QUICK, steps=2), pseudo_labels=replace(quick().pseudo_labels, slices=0))
    task = adapt(support, embedder, decoder, config=config)
    embedder.open(volume).embed()
    before = embedder.encoded
    prediction = segment(embedder.open(volume), task, config=config)
    assert embedder.encoded == before, "what is cached is not encoded again"
    assert prediction.logits.shape == (1, 9, 64, 64)
    assert prediction.mask.shape == volume.shape


def test_all_its_parts_learn_and_nothing_else(embedder: Embedder, decoder: SelfSamplingDecoder) -> None:
    volume = draw_volume()
    support = {"organ": labelled(embedder, volume, ORGAN, (2, 4, 6))}
    tasks = adaptation_tasks(support, embedder, decoder, config=QUICK)
    fitted = fit(decoder, tasks, replace(QUICK, steps=2)).decoder
    moved = {
        name.split(".")[0]
        for (name, new), old in zip(fitted.named_parameters(), decoder.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved == {"inner", "sampling", "mask_attention"}
    kept = {id(parameter) for parameter in fitted.adaptable()}
    for (name, new), old in zip(fitted.named_parameters(), decoder.parameters(), strict=True):
        assert id(new) in kept or torch.equal(new, old), name


def test_a_slice_of_the_published_size_takes_a_bounded_time(decoder: SelfSamplingDecoder) -> None:
    """64 x 64 cells: attention among all of them would cost 16 times what pooled keys do."""
    image, masks = torch.randn(1, 256, 64, 64), torch.rand(1, 4, 64, 64)
    attention = decoder.mask_attention

    def seconds() -> float:
        best = []
        for _ in range(3):
            start = time.process_time()
            with torch.inference_mode():
                attention(image, masks)
            best.append(time.process_time() - start)
        return min(best)

    pooled = seconds()
    original = attention.config
    attention.config = replace(original, most_keys=64 * 64)
    try:
        assert pooled < seconds()
    finally:
        attention.config = original
