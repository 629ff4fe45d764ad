"""The loop learns, stops in time, resumes, and writes a file that the shipped loaders read."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.prompt_small import Answer, SmallPromptDecoder
from ssmsam.models.small_encoder import SmallEncoder, part_of
from ssmsam.progress import Cancelled
from ssmsam_research.training.groups import GroupConfig, Groups
from ssmsam_research.training.loop import answer_loss
from ssmsam_research.training.prompt_episodes import EpisodeConfig, Episodes
from ssmsam_research.training.prompt_training import PromptTrainer, TrainingConfig, export, train
from ssmsam_research.training.semantics import Vocabulary

CONFIG = TrainingConfig(
    minutes=0.1,
    workers=0,
    warm_up_steps=3,
    learning_rate=2e-3,
    episodes=EpisodeConfig(pairs=2, targets=2, sides=(64,)),
    groups=GroupConfig(groups=1, targets=2, sides=(64,)),
)
CLASSES = 3


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
    trainer = PromptTrainer(config=CONFIG, classes=CLASSES)
    batch = next(iter(Episodes(volumes=[packed], config=CONFIG.episodes, seed=0)))
    steps = [trainer.train_step(batch, np.random.default_rng(0)) for _ in range(30)]
    assert set(steps[0]) == {f"round {n}" for n in range(1, CONFIG.rounds + 1)}
    losses = [np.mean(list(step.values())) for step in steps]
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_steps_on_one_group_lower_its_losses(packed):
    trainer = PromptTrainer(config=CONFIG, classes=CLASSES)
    groups = Groups(volumes=[packed], vocabulary=Vocabulary([packed]), config=CONFIG.groups)
    drawn = (groups.draw(np.random.default_rng(seed)) for seed in range(20))
    batch = next(one for one in drawn if (one.semantic > 0).any())  # organs are not named in mirrored groups
    steps = [trainer.train_step(batch, np.random.default_rng(0)) for _ in range(25)]
    for name in ("proposal", "semantic"):
        losses = [step[name] for step in steps]
        assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3]), name
    assert "corrected" in {
        name for step in (trainer.train_step(batch, np.random.default_rng(n)) for n in range(12)) for name in step
    }


def test_what_is_exported_can_be_read_and_is_finite(tmp_path):
    model = PromptTrainer(config=CONFIG, classes=CLASSES).model
    path = tmp_path / "small.safetensors"
    export(model, path)
    state = load_file(path)
    assert {name.split(".")[0] for name in state} == {"encoder", "prompting", "fewshot"}, "names are not shipped"
    for name, tensor in state.items():
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32), name
    TargetNetwork().load_state_dict(part_of(state, "fewshot"))


def test_a_large_variance_survives_the_export(tmp_path):
    model = PromptTrainer(config=CONFIG, classes=CLASSES).model
    name, variance = next((n, b) for n, b in model.named_buffers() if n.endswith("running_var"))
    variance[0] = 1e6
    export(model, tmp_path / "small.safetensors")
    assert load_file(tmp_path / "small.safetensors")[name][0] == 1e6


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e6])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value):
    """The last value is finite, but not in the half precision of matrices."""
    model = PromptTrainer(config=CONFIG, classes=CLASSES).model
    path = tmp_path / "small.safetensors"
    path.write_bytes(b"the weights of before")
    with torch.no_grad():
        model.fewshot.target.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"not written: fewshot\.target\.weight$"):
        export(model, path)
    assert path.read_bytes() == b"the weights of before"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_training_may_start_from_weights_without_the_few_shot_part(tmp_path):
    first = PromptTrainer(config=CONFIG, classes=CLASSES)
    path = tmp_path / "small.safetensors"
    export(first.model, path)
    whole = PromptTrainer(config=replace(CONFIG, seed=1), classes=CLASSES)
    whole.start_from(path)
    old = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("fewshot.")}
    save_file(old, path)
    partly = PromptTrainer(config=replace(CONFIG, seed=1), classes=CLASSES)
    partly.start_from(path)
    mine, prompted = dict(partly.average.fewshot.named_parameters()), dict(partly.average.prompting.named_parameters())
    shared = "transformer.norm.weight"
    assert torch.equal(mine[shared], prompted[shared])
    theirs = dict(first.model.fewshot.named_parameters())
    for name, tensor in whole.average.fewshot.named_parameters():
        torch.testing.assert_close(tensor, theirs[name].half().float() if tensor.ndim > 1 else theirs[name])


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

    again = PromptTrainer(config=CONFIG, classes=CLASSES)
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
    trainer = PromptTrainer(config=CONFIG, classes=CLASSES)
    assert trainer.rate() == pytest.approx(CONFIG.learning_rate / 3)
    trainer.step = 10
    assert trainer.rate() == pytest.approx(CONFIG.learning_rate)
    trainer.seconds = 6.0
    assert trainer.rate() == pytest.approx(0.02 * CONFIG.learning_rate)
    assert math.isfinite(trainer.rate())
