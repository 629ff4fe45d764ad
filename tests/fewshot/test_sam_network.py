"""SAM's decoder with target tokens: random weights, so this is about shapes, gradients and honesty, not quality."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from tiny_sam import tiny_sam

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import AdaptationConfig, FewShotConfig, ViewConfig
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.fewshot_sam import SamTargetNetwork
from ssmsam.models.sam_encoder import SamEncoder
from ssmsam.volume.volume import Volume


@pytest.fixture(scope="module")
def sam() -> Sam:
    return tiny_sam()


@pytest.fixture(scope="module")
def embedder(sam: Sam) -> Embedder:
    encoder = SamEncoder(sam, name="sam_vit_b", weights_sha256="random").requires_grad_(False)
    return Embedder(encoder=encoder)


@pytest.fixture(scope="module")
def decoder(sam: Sam) -> SamTargetNetwork:
    return SamTargetNetwork(sam).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def patient() -> tuple[Volume, np.ndarray]:
    """A bright ball in noise, and its mask."""
    z, y, x = np.indices((9, 48, 48))
    ball = (z - 4) ** 2 * 9 + (y - 22) ** 2 + (x - 26) ** 2 < 144
    noise = np.random.default_rng(0).normal(0, 5, ball.shape)
    return Volume((100.0 * ball + noise).astype(np.float32), np.diag([2.0, 2.0, 5.0, 1.0]), modality="MR"), ball


def labelled_slices(embedder: Embedder, volume: Volume, ball: np.ndarray, *slices: int) -> list[LabelledSlice]:
    embeddings = embedder.open(volume)
    return [LabelledSlice(embeddings, index, ball[index]) for index in slices]


def quick(steps: int) -> FewShotConfig:
    config = FewShotConfig(folds=0)
    views = replace(config.adaptation.views, views=0)
    return replace(config, adaptation=replace(config.adaptation, steps=steps, views=views, budget_s=1e9))


def test_adaptation_learns_and_leaves_the_given_decoder_alone(
    embedder: Embedder, decoder: SamTargetNetwork, patient: tuple[Volume, np.ndarray]
) -> None:
    volume, ball = patient
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    support = {"ball": labelled_slices(embedder, volume, ball, 2, 4, 6)}
    task = adapt(support, embedder, decoder, config=quick(30))
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    found = segment(embedder.open(volume), task, support=support, config=quick(30)).mask == 1
    rest = [1, 3, 5, 7]
    overlap = 2 * (found[rest] & ball[rest]).sum() / (found[rest].sum() + ball[rest].sum())
    assert overlap > 0.7


def test_every_adaptable_parameter_gets_a_gradient_and_cross_attention_needs_none_of_them(
    embedder: Embedder, decoder: SamTargetNetwork, patient: tuple[Volume, np.ndarray]
) -> None:
    volume, ball = patient
    network = copy.deepcopy(decoder)
    config = AdaptationConfig(views=ViewConfig(views=0))
    tasks = adaptation_tasks(
        {"ball": labelled_slices(embedder, volume, ball, 2, 4, 6)}, embedder, network, config=config
    )
    query_batch = tasks["ball"][0].query_batch([0, 1])
    learned = [parameter.requires_grad_(True) for parameter in network.adaptable()]
    features = network.cross_attention(query_batch.embedding, query_batch.context)
    assert not features.votes.requires_grad
    proposal = network(query_batch.embedding, query_batch.context, features=features)
    (proposal.logits.mean() + proposal.presence.mean()).backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert len(learned) > 50


def test_the_answer_to_a_slice_does_not_depend_on_its_batch(
    embedder: Embedder, decoder: SamTargetNetwork, patient: tuple[Volume, np.ndarray]
) -> None:
    volume, ball = patient
    support = {"ball": labelled_slices(embedder, volume, ball, 2, 6)}
    task = adapt(support, embedder, decoder, config=quick(0))
    alone = replace(quick(0), segmentation=replace(quick(0).segmentation, batch=1))
    together = segment(embedder.open(volume), task, config=quick(0)).logits
    np.testing.assert_allclose(segment(embedder.open(volume), task, config=alone).logits, together, atol=1e-3)
