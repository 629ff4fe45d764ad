"""SSM-SAM's training behind a frozen encoder: it learns, leaves the encoder alone, resumes, and its file is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import ORGAN, PocketEncoder, draw_volume, labelled, tasks_of
from pocket_ssm import pocket_ssm
from safetensors.torch import load_file

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import AdaptationConfig
from ssmsam.fewshot.meta_learning import Episode
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SPEC, SmallEncoder
from ssmsam.models.weights import made_for
from ssmsam_research.training.groups import GroupConfig, Groups
from ssmsam_research.training.pack import PackedVolume
from ssmsam_research.training.semantics import Vocabulary
from ssmsam_research.training.ssm_training import RateLearner, RatesConfig, SsmTrainer, SsmTrainingConfig, train_ssm

INNER = AdaptationConfig(steps=1, budget_s=float("inf"), warm_up=1)
PLAIN = AdaptationConfig(
    steps=1, budget_s=float("inf"), batch=2, optimiser="sgd", learning_rate=0.5, warm_up=1, weight_decay=0.0,
    clip_norm=1e9, prior_truth=0.0,
)  # fmt: skip
CONFIG = SsmTrainingConfig(
    minutes=0.03,
    meta_minutes=0.03,
    workers=0,
    warm_up_steps=2,
    groups=GroupConfig(groups=1, targets=2, sides=(64,), rows=6),
    episode_slices=6,
    episode_side=64,
    meta=RatesConfig(tasks=1, inner=INNER, learn_rates=True),
)


@pytest.fixture
def encoder() -> SmallEncoder:
    torch.manual_seed(0)
    return SmallEncoder(weights_sha256="these weights")


@pytest.fixture
def decoder() -> SelfSamplingDecoder:
    torch.manual_seed(1)
    return SelfSamplingDecoder(TargetNetwork(), width=SPEC.channels)


def test_steps_on_one_batch_lower_its_loss(
    packed: PackedVolume, encoder: SmallEncoder, decoder: SelfSamplingDecoder
) -> None:
    trainer = SsmTrainer(encoder, decoder, config=replace(CONFIG, minutes=60, left_out=0.0))
    batch = Groups(volumes=[packed], vocabulary=Vocabulary([packed]), config=CONFIG.groups).draw(
        np.random.default_rng(0)
    )
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    losses = [trainer.plain_step(batch, np.random.default_rng(0))["proposal"] for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert decoder.sampling.out.weight.abs().max() > 0 and decoder.mask_attention.out.weight.abs().max() > 0


def test_both_phases_write_starts_that_a_decoder_reads(
    packed: PackedVolume, encoder: SmallEncoder, decoder: SelfSamplingDecoder, tmp_path: Path
) -> None:
    out = tmp_path / "start.safetensors"
    told: set[str] = set()
    train_ssm([packed], encoder, decoder, out=out, config=CONFIG, progress=lambda phase, *_: told.add(phase))
    plain, meta = load_file(str(tmp_path / "start_plain.safetensors")), load_file(str(out))
    assert told == {"plain", "meta"}
    assert made_for(out) == "these weights"
    fresh = SelfSamplingDecoder(TargetNetwork(), width=SPEC.channels)
    fresh.load_state_dict({name: tensor.float() for name, tensor in meta.items()})
    assert any(not torch.equal(plain[name], meta[name]) for name in plain)
    assert meta["log_rates"].abs().max() > 0, "learning rates were learned"
    assert all(tensor.isfinite().all() for tensor in meta.values())
    assert json.loads(out.with_suffix(".config.json").read_text())["meta"]["learn_rates"] is True


def test_plain_training_goes_on_from_a_checkpoint(
    packed: PackedVolume, encoder: SmallEncoder, decoder: SelfSamplingDecoder, tmp_path: Path
) -> None:
    trainer = SsmTrainer(encoder, decoder, config=CONFIG)
    batch = Groups(volumes=[packed], vocabulary=Vocabulary([packed]), config=CONFIG.groups).draw(
        np.random.default_rng(0)
    )
    trainer.plain_step(batch, np.random.default_rng(0))
    trainer.save(tmp_path / "ssm.ckpt")
    again = SsmTrainer(encoder, SelfSamplingDecoder(TargetNetwork(), width=SPEC.channels), config=CONFIG)
    again.resume(tmp_path / "ssm.ckpt")
    assert again.step == 1
    states = trainer.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    losses = [one.plain_step(batch, np.random.default_rng(1)) for one in (trainer, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_learning_rates_follow_the_slope_of_the_query_loss() -> None:
    """A rate grows where the inner step and the query's descent agree; the rule is checked against the loss itself."""
    embedder = Embedder(encoder=PocketEncoder())
    support = {"organ": labelled(embedder, draw_volume(), ORGAN, (1, 2, 4, 6))}
    decoder = pocket_ssm()
    adaptation_task = tasks_of(support, embedder, decoder)["organ"][0]
    episode = Episode("organ", [adaptation_task], (1,))
    config = RatesConfig(
        inner=replace(PLAIN, learning_rate=0.01), tasks=1, learn_rates=True, outer_rate=0.0, weight_decay=0
    )
    RateLearner(decoder, config=config).step([episode], seed=0)
    moved = decoder.log_rates.clone()
    assert set(moved.tolist()) <= {np.float32(0.05).item(), np.float32(-0.05).item(), 0.0}

    def query_loss(rates: torch.Tensor) -> float:
        fresh = pocket_ssm()
        fresh.log_rates.copy_(rates)
        return RateLearner(fresh, config=replace(config, learn_rates=False)).step([episode], seed=0)

    assert query_loss(4 * moved) < query_loss(torch.zeros_like(moved)) < query_loss(-4 * moved)
