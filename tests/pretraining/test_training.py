"""The loop learns, stops in time, resumes, and writes a file that the shipped loaders read."""

import json
import math

import numpy as np
import pytest
import torch

from ssmsam.encoders.small import SmallEncoder
from ssmsam.pretraining.episodes import EpisodeConfig, Episodes
from ssmsam.pretraining.losses import answer_loss
from ssmsam.pretraining.training import Trainer, TrainingConfig, train
from ssmsam.progress import Cancelled
from ssmsam.prompting.small_decoder import SmallPromptDecoder
from ssmsam.prompting.small_network import Answer

CONFIG = TrainingConfig(
    minutes=0.1,
    workers=0,
    warm_up_steps=3,
    learning_rate=2e-3,
    episodes=EpisodeConfig(pairs=2, targets=2, sides=(64,)),
)


def square(side=16):
    target = torch.zeros(1, 1, side, side)
    target[..., 4:12, 4:12] = 1
    return target


def answer(*logits, presence=0.0):
    stack = torch.cat(logits, dim=1)
    return Answer(stack, torch.zeros(1, stack.shape[1]), torch.tensor([presence]))


def test_the_best_candidate_decides():
    right, wrong = square() * 20 - 10, -(square() * 20 - 10)
    judged = torch.zeros(1)
    good = answer_loss(answer(wrong, right, wrong), square(), judged)
    bad = answer_loss(answer(wrong, wrong, wrong), square(), judged)
    assert good < 0.5 * bad


def test_presence_counts_only_where_it_was_judged():
    right = square() * 20 - 10
    calm, judged = torch.zeros(1), torch.ones(1)
    sure, denied = answer(right, presence=5.0), answer(right, presence=-5.0)
    assert answer_loss(sure, square(), calm) == answer_loss(denied, square(), calm)
    assert answer_loss(sure, square(), judged) < answer_loss(denied, square(), judged)


def test_an_absent_target_wants_an_empty_mask():
    nothing = torch.zeros(1, 1, 16, 16)
    empty, full = torch.full((1, 1, 16, 16), -8.0), torch.full((1, 1, 16, 16), 8.0)
    judged = torch.ones(1)
    assert answer_loss(answer(empty, presence=-5.0), nothing, judged) < 0.2
    assert answer_loss(answer(full, presence=5.0), nothing, judged) > 5


def test_steps_on_one_batch_lower_its_loss(packed):
    trainer = Trainer(config=CONFIG)
    batch = next(iter(Episodes(volumes=[packed], config=CONFIG.episodes, seed=0)))
    losses = [np.mean(trainer.train_step(batch, np.random.default_rng(0))) for _ in range(30)]
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_training_stops_in_time_writes_weights_and_resumes(packed, tmp_path):
    out = tmp_path / "small.safetensors"
    seen = []
    trainer = train([packed], out=out, config=CONFIG, progress=lambda *args: seen.append(args))
    assert trainer.seconds == pytest.approx(6, abs=4)
    assert seen[-1][2] == 6 and seen[-1][1] >= 6
    config = json.loads(out.with_suffix(".config.json").read_text())
    assert config["seed"] == 0 and config["episodes"]["sides"] == [64]
    assert not SmallEncoder.from_file(out).training
    SmallPromptDecoder.from_file(out)

    again = Trainer(config=CONFIG)
    again.resume(out.with_suffix(".ckpt"))
    assert again.step == trainer.step
    for mine, theirs in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    resumed = train([packed], out=out, config=CONFIG, resume=out.with_suffix(".ckpt"))
    assert resumed.step == trainer.step + 1, "the budget counts the time of earlier runs"


def test_cancelling_is_not_swallowed(packed, tmp_path):
    def stop(phase, done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        train([packed], out=tmp_path / "w.safetensors", config=CONFIG, progress=stop)


def test_the_rate_warms_up_and_falls():
    trainer = Trainer(config=CONFIG)
    assert trainer.rate() == pytest.approx(CONFIG.learning_rate / 3)
    trainer.step = 10
    assert trainer.rate() == pytest.approx(CONFIG.learning_rate)
    trainer.seconds = 6.0
    assert trainer.rate() == pytest.approx(0.02 * CONFIG.learning_rate)
    assert math.isfinite(trainer.rate())
