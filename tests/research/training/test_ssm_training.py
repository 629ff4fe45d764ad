"""SSM-SAM's training behind a frozen encoder: it learns, leaves the encoder alone, resumes, and its file is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssmsam.fewshot.config import AdaptationConfig, MetaConfig
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SPEC, SmallEncoder
from ssmsam.models.weights import made_for
from ssmsam_research.training.groups import GroupConfig, Groups
from ssmsam_research.training.pack import PackedVolume
from ssmsam_research.training.semantics import Vocabulary
from ssmsam_research.training.ssm_training import SsmTrainer, SsmTrainingConfig, train_ssm

INNER = AdaptationConfig(steps=1, budget_s=float("inf"), warm_up=1)
CONFIG = SsmTrainingConfig(
    minutes=0.03,
    meta_minutes=0.03,
    workers=0,
    warm_up_steps=2,
    groups=GroupConfig(groups=1, targets=2, sides=(64,), rows=6),
    episode_slices=6,
    episode_side=64,
    meta=MetaConfig(tasks=1, inner=INNER, learn_rates=True),
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
