"""The training loop of the small model: resumable, seeded, bounded by time."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from ssmsam.encoders.small import SmallEncoder
from ssmsam.pretraining.episodes import EpisodeBatch, EpisodeConfig, Episodes
from ssmsam.pretraining.losses import answer_loss
from ssmsam.pretraining.pack import PackedVolume
from ssmsam.pretraining.rounds import play_rounds
from ssmsam.progress import Progress, silent
from ssmsam.prompting.small_network import SmallPromptNetwork


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast. ``minutes`` counts training time over all resumed runs."""

    minutes: float = 10.0
    learning_rate: float = 1.5e-3
    warm_up_steps: int = 100
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    average: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is kept."""
    rounds: int = 3
    seed: int = 0
    workers: int = 1
    device: str = "cpu"
    checkpoint_s: float = 120.0
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)


class SmallModel(nn.Module):
    """Encoder and prompt decoder, saved in one file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallEncoder()
        self.prompting = SmallPromptNetwork()


class Trainer:
    """Everything that a checkpoint holds."""

    def __init__(self, *, config: TrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.model = SmallModel().to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        other = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": other, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.seconds = 0.0

    def rate(self) -> float:
        """Learning rate now: linear warm-up, then cosine over the time budget."""
        done = min(1.0, self.seconds / (60 * self.config.minutes))
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
        return self.config.learning_rate * min(1.0, (self.step + 1) / self.config.warm_up_steps) * cosine

    def train_step(self, batch: EpisodeBatch, rng: np.random.Generator) -> list[float]:
        """One step of the optimiser; the loss of each round."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        batch = batch.to(self.config.device)
        embedding = self.model.encoder(batch.slices.contiguous(memory_format=torch.channels_last))
        losses = [
            answer_loss(answer, batch.target, judged)
            for answer, judged in play_rounds(self.model.prompting, embedding, batch, rng, self.config.rounds)
        ]
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._follow()
        return [float(loss.detach()) for loss in losses]

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)

    def save(self, path: Path) -> None:
        """Write a checkpoint from which training goes on."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises FileNotFoundError when there is none."""
        state = torch.load(path, map_location=self.config.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


def train(
    volumes: Sequence[PackedVolume],
    *,
    out: Path,
    config: TrainingConfig,
    resume: Path | None = None,
    progress: Progress = silent,
) -> Trainer:
    """Train for ``config.minutes`` and write the averaged weights to ``out`` (fp16 safetensors).

    Beside ``out`` appear a checkpoint (``.ckpt``), renewed every ``checkpoint_s`` seconds, and a learning curve
    (``.jsonl``: step, seconds, loss of each round). Stopping early loses nothing but the time since the last one.
    """
    trainer = Trainer(config=config)
    if resume is not None:
        trainer.resume(resume)
    episodes = Episodes(volumes=volumes, config=config.episodes, seed=config.seed + trainer.step)
    loader = DataLoader(
        episodes, batch_size=None, num_workers=config.workers, prefetch_factor=4 if config.workers else None
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".config.json").write_text(json.dumps(asdict(config), indent=1))
    rng = np.random.default_rng((config.seed, trainer.step))
    losses: list[list[float]] = []
    last_save = started = time.monotonic()
    before = trainer.seconds
    for batch in loader:
        losses.append(trainer.train_step(batch, rng))
        now = time.monotonic()
        trainer.seconds = before + now - started
        progress("train", int(trainer.seconds), int(60 * config.minutes))
        if len(losses) == 50:
            _log(out, trainer, losses)
            losses = []
        finished = trainer.seconds >= 60 * config.minutes
        if finished or now - last_save > config.checkpoint_s:
            trainer.save(out.with_suffix(".ckpt"))
            export(trainer.average, out)
            last_save = now
        if finished:
            break
    return trainer


def export(model: SmallModel, path: Path) -> None:
    """Write the weights as fp16 safetensors, atomically."""
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    partial = path.with_suffix(".partial")
    save_file(state, str(partial))
    os.replace(partial, path)


def _log(out: Path, trainer: Trainer, losses: list[list[float]]) -> None:
    means = np.mean(losses, axis=0).round(4).tolist()
    line = {"step": trainer.step, "seconds": round(trainer.seconds, 1), "loss_by_round": means}
    with out.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
