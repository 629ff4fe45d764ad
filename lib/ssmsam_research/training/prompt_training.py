"""The training loop of the small model: resumable, seeded, bounded by time."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.prompt_small import SmallPromptNetwork
from ssmsam.models.small_encoder import SmallEncoder, part_of
from ssmsam.progress import Progress, silent
from ssmsam_research.training.groups import GroupBatch, GroupConfig, Groups
from ssmsam_research.training.loop import (
    Trainer,
    answer_loss,
    follow,
    log_losses,
    write_weights,
)
from ssmsam_research.training.pack import PackedVolume
from ssmsam_research.training.prompt_episodes import EpisodeBatch, EpisodeConfig, Episodes, Mixture, play_rounds
from ssmsam_research.training.proposals import group_losses
from ssmsam_research.training.semantics import SemanticHead, Vocabulary, semantic_loss


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
    bfloat16: bool = False
    """Whether the encoder computes in half the precision: nearly twice as fast where the processor can, or slower."""
    checkpoint_s: float = 120.0
    group_share: float = 0.65
    """Share of steps that learn from labelled slices; the others learn from clicks."""
    semantic_weight: float = 0.3
    """Weight of naming organs beside the losses of the decoders."""
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    groups: GroupConfig = field(default_factory=GroupConfig)


class SmallModel(nn.Module):
    """Encoder and both decoders, saved in one file; ``semantic`` only serves training."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.encoder = SmallEncoder()
        self.prompting = SmallPromptNetwork()
        self.fewshot = TargetNetwork()
        self.semantic = SemanticHead(classes)


class PromptTrainer(Trainer):
    """Everything that a checkpoint holds."""

    model: SmallModel
    average: SmallModel

    def __init__(self, *, config: TrainingConfig, classes: int) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = config.device
        model = SmallModel(classes=classes)
        self.model = model.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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

    def start_from(self, path: Path) -> None:
        """Take the weights of an earlier file; the few-shot decoder begins as far as it can with the prompted one's."""
        state = load_file(str(path))
        for model in (self.model, self.average):
            model.encoder.load_state_dict(part_of(state, "encoder"))
            model.prompting.load_state_dict(part_of(state, "prompting"))
            if any(name.startswith("fewshot.") for name in state):
                model.fewshot.load_state_dict(part_of(state, "fewshot"))
                continue
            own = model.fewshot.state_dict()
            alike = {n: t for n, t in part_of(state, "prompting").items() if n in own and own[n].shape == t.shape}
            model.fewshot.load_state_dict({**own, **alike})

    def _encoded(self, slices: torch.Tensor) -> Embedding:
        with torch.autocast(torch.device(self.config.device).type, torch.bfloat16, enabled=self.config.bfloat16):
            embedding = self.model.encoder(slices)
        return {"image": embedding["image"].float(), "levels": [level.float() for level in embedding["levels"]]}

    def train_step(self, batch: EpisodeBatch | GroupBatch, rng: np.random.Generator) -> dict[str, float]:
        """One step of the optimiser; its losses by name."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        batch = batch.to(self.config.device)
        embedding = self._encoded(batch.slices.contiguous(memory_format=torch.channels_last))
        if isinstance(batch, GroupBatch):
            losses = group_losses(self.model.fewshot, embedding, batch, rng)
            total = torch.stack(list(losses.values())).mean()
            named = semantic_loss(self.model.semantic(embedding), batch.semantic, batch.labelled)
            losses["semantic"] = named
            total = total + self.config.semantic_weight * named
        else:
            played = play_rounds(self.model.prompting, embedding, batch, rng, self.config.rounds)
            losses = {f"round {n}": answer_loss(a, batch.target, judged) for n, (a, judged) in enumerate(played, 1)}
            total = torch.stack(list(losses.values())).mean()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.step += 1
        follow(self.average, self.model, decay=self.config.average, step=self.step)
        return {name: float(loss.detach()) for name, loss in losses.items()}


def train(
    volumes: Sequence[PackedVolume],
    *,
    out: Path,
    config: TrainingConfig,
    resume: Path | None = None,
    start: Path | None = None,
    progress: Progress = silent,
) -> PromptTrainer:
    """Train for ``config.minutes`` and write the averaged weights to ``out`` (fp16 safetensors).

    Beside ``out`` appear a checkpoint (``.ckpt``), renewed every ``checkpoint_s`` seconds, and a learning curve
    (``.jsonl``: step, seconds, mean losses). Stopping early loses nothing but the time since the last one. ``start``
    are weights to begin with, ``resume`` a checkpoint to go on from.
    """
    vocabulary = Vocabulary(volumes)
    trainer = PromptTrainer(config=config, classes=len(vocabulary))
    if start is not None:
        trainer.start_from(start)
    if resume is not None:
        trainer.resume(resume)
    mixture = Mixture(
        episodes=Episodes(volumes=volumes, config=config.episodes, seed=config.seed),
        groups=Groups(volumes=volumes, vocabulary=vocabulary, config=config.groups),
        group_share=config.group_share,
        seed=config.seed + trainer.step,
    )
    loader = DataLoader(
        mixture, batch_size=None, num_workers=config.workers, prefetch_factor=4 if config.workers else None
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".config.json").write_text(json.dumps(asdict(config), indent=1))
    rng = np.random.default_rng((config.seed, trainer.step))
    losses: list[dict[str, float]] = []
    last_save = started = time.monotonic()
    before = trainer.seconds
    for batch in loader:
        losses.append(trainer.train_step(batch, rng))
        now = time.monotonic()
        trainer.seconds = before + now - started
        progress("train", int(trainer.seconds), int(60 * config.minutes))
        if len(losses) == 50:
            log_losses(out, trainer.step, trainer.seconds, losses)
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
    """Write the weights that ship, as :func:`~ssmsam_research.training.loop.write_weights` does."""
    write_weights(path, {name: t for name, t in model.state_dict().items() if not name.startswith("semantic.")})
