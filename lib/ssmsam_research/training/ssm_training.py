"""Training of SSM-SAM's decoder behind a frozen encoder: first plainly on groups, then by meta-learning on episodes."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ssmsam.fewshot.config import LEAST_SUPPORT, MetaConfig, SupportBankConfig
from ssmsam.fewshot.episodes import AdaptationTask
from ssmsam.fewshot.meta_learning import Episode, MetaLearner
from ssmsam.fewshot.support_bank import Places, SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.progress import Progress, silent
from ssmsam_research.training.groups import Group, GroupBatch, GroupConfig, Groups
from ssmsam_research.training.loop import Trainer, follow, log_losses, write_weights
from ssmsam_research.training.pack import PackedVolume
from ssmsam_research.training.proposals import group_losses
from ssmsam_research.training.semantics import Vocabulary


@dataclass(frozen=True)
class RatesConfig(MetaConfig):
    """``rates_rate`` is the step of the logarithms of the learning rates, where ``learn_rates``."""

    rates_rate: float = 0.05
    learn_rates: bool = False


class RateLearner(MetaLearner):
    """Learns the learning rates of the inner loop too, one for each group of parameters (Li et al., 2017).

    With theta' = theta - exp(r) u, to first order dL/dr is the product of dL/dtheta' with theta' - theta.
    """

    decoder: SelfSamplingDecoder
    config: RatesConfig

    def step(self, episodes: Sequence[Episode], *, seed: int) -> float:
        self._slopes: list[list[float]] = []
        loss = super().step(episodes, seed=seed)
        if self.config.learn_rates:
            with torch.no_grad():  # a step of fixed length: the losses of episodes are of very different size
                down = torch.from_numpy(np.sign(np.mean(self._slopes, axis=0))).to(self.decoder.log_rates)
                self.decoder.log_rates -= self.config.rates_rate * down
                self.decoder.log_rates.clamp_(-3, 3)
        return loss

    def adapted(self, fitted: TargetDecoder, gradients: Mapping[int, torch.Tensor | None]) -> None:
        slopes = []
        for (after, _), (before, _) in zip(fitted.rated(), self.decoder.rated(), strict=True):
            moved = [
                float((gradients[id(new)] * (new.detach() - old.detach())).sum())  # type: ignore[operator]
                for new, old in zip(after, before, strict=True)
                if gradients[id(new)] is not None
            ]
            slopes.append(sum(moved))
        self._slopes.append(slopes)


@dataclass(frozen=True)
class SsmTrainingConfig:
    """``minutes`` of plain training, then ``meta_minutes`` of meta-learning."""

    minutes: float = 30.0
    meta_minutes: float = 20.0
    learning_rate: float = 6e-4
    warm_up_steps: int = 50
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    average: float = 0.995
    """Decay of the moving average of the weights, which is what meta-learning begins with."""
    left_out: float = 0.15
    """How often each of the modules is left out of a step, so that none relies on the other."""
    seed: int = 0
    workers: int = 1
    groups: GroupConfig = field(default_factory=GroupConfig)
    episode_slices: int = 8
    episode_side: int = 256
    meta: RatesConfig = field(default_factory=RatesConfig)


class _Drawn(IterableDataset["Group | GroupBatch"]):
    """An endless, seeded stream of batches of groups, or of single groups with ``side``."""

    def __init__(self, groups: Groups, *, seed: int, side: int | None = None) -> None:
        self._groups, self._seed, self._side = groups, seed, side

    def __iter__(self) -> Iterator[Group | GroupBatch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        while True:
            yield self._groups.draw(rng) if self._side is None else self._groups.draw_one(rng, self._side)


class SsmTrainer(Trainer):
    """Everything that a checkpoint holds, and the two kinds of steps."""

    model: SelfSamplingDecoder
    average: SelfSamplingDecoder

    def __init__(self, encoder: SmallEncoder, decoder: SelfSamplingDecoder, *, config: SsmTrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.encoder = encoder.eval().requires_grad_(False)
        self.model = decoder.train().requires_grad_(True)
        self.average = copy.deepcopy(decoder).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            decoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        self.step = 0
        self.seconds = 0.0

    def plain_step(self, batch: GroupBatch, rng: np.random.Generator) -> dict[str, float]:
        """One step of the optimiser on a batch of groups."""
        done = min(1.0, self.seconds / max(1e-6, 60 * self.config.minutes))
        warm = min(1.0, (self.step + 1) / self.config.warm_up_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        with torch.no_grad():
            embedding = self.encoder(batch.slices)
        whole = self.model.config
        sampling, attention = rng.random(2) >= self.config.left_out
        self.model.config = replace(whole, self_sampling=bool(sampling), mask_attention=bool(attention))
        losses = group_losses(self.model, embedding, batch, rng)
        self.model.config = whole
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.step += 1
        follow(self.average, self.model, decay=self.config.average, step=self.step)
        return {name: float(loss.detach()) for name, loss in losses.items()}


def train_ssm(
    volumes: Sequence[PackedVolume],
    encoder: SmallEncoder,
    decoder: SelfSamplingDecoder,
    *,
    out: Path,
    config: SsmTrainingConfig,
    resume: Path | None = None,
    progress: Progress = silent,
) -> SsmTrainer:
    """Train and write the start to ``out`` (fp16 safetensors), after plain training also beside it as ``*_plain``.

    A checkpoint (``.ckpt``) and a log (``.jsonl``) appear beside it.
    """
    trainer = SsmTrainer(encoder, decoder, config=config)
    if resume is not None:
        trainer.resume(resume)
    vocabulary = Vocabulary(volumes)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".config.json").write_text(json.dumps(asdict(config), indent=1))
    _plain(trainer, Groups(volumes=volumes, vocabulary=vocabulary, config=config.groups), out, progress)
    export_start(trainer.average, out.with_name(f"{out.stem}_plain.safetensors"), encoder=encoder)
    if config.meta_minutes:
        slices = replace(config.groups, slices=config.episode_slices, zoom_share=0.0)
        _meta(trainer, Groups(volumes=volumes, vocabulary=vocabulary, config=slices), out, progress)
    export_start(trainer.average, out, encoder=encoder)
    return trainer


def _plain(trainer: SsmTrainer, groups: Groups, out: Path, progress: Progress) -> None:
    config = trainer.config
    rng = np.random.default_rng((config.seed, trainer.step))
    losses: list[dict[str, float]] = []
    before, started, saved = trainer.seconds, time.monotonic(), time.monotonic()
    stream = _loader(_Drawn(groups, seed=config.seed + trainer.step), config.workers)
    while trainer.seconds < 60 * config.minutes:
        batch = next(stream)
        assert isinstance(batch, GroupBatch)
        losses.append(trainer.plain_step(batch, rng))
        trainer.seconds = before + time.monotonic() - started
        progress("plain", int(trainer.seconds), int(60 * config.minutes))
        if len(losses) == 25:
            log_losses(out, trainer.step, trainer.seconds, losses)
            losses = []
        if time.monotonic() - saved > 120:
            trainer.save(out.with_suffix(".ckpt"))
            export_start(trainer.average, out.with_name(f"{out.stem}_plain.safetensors"), encoder=trainer.encoder)
            saved = time.monotonic()


def _meta(trainer: SsmTrainer, groups: Groups, out: Path, progress: Progress) -> None:
    config = trainer.config
    learner = RateLearner(trainer.average, config=config.meta)
    drawn = _loader(_Drawn(groups, seed=config.seed + 1, side=config.episode_side), config.workers)
    stream = _episodes(drawn, trainer, np.random.default_rng(config.seed))
    losses: list[float] = []
    started, step = time.monotonic(), 0
    while time.monotonic() - started < 60 * config.meta_minutes:
        losses.append(learner.step([next(stream) for _ in range(config.meta.tasks)], seed=step * config.meta.tasks))
        step += 1
        progress("meta", int(time.monotonic() - started), int(60 * config.meta_minutes))
        if len(losses) == 10:
            seconds = round(trainer.seconds + time.monotonic() - started, 1)
            _log(out, {"step": trainer.step + step, "seconds": seconds, "loss": {"after adaptation": _mean(losses)}})
            export_start(trainer.average, out, encoder=trainer.encoder)
            losses = []


def _episodes(drawn: Iterator[Group | GroupBatch], trainer: SsmTrainer, rng: np.random.Generator) -> Iterator[Episode]:
    """Groups as episodes: over two volumes the second is the query, in one volume a few slices are."""
    for group in drawn:
        assert isinstance(group, Group)
        with torch.no_grad():
            embedding = trainer.encoder(torch.from_numpy(group.pixels))
        for target in group.masks:
            masks = torch.from_numpy(target)[:, None].float()
            known = torch.ones_like(masks)
            bank = SupportBank.from_tensors(
                embedding["image"],
                masks,
                known,
                stride=trainer.model.stride,
                places=_places(group),
            )
            second = np.flatnonzero(group.volume == group.volume.max())
            few = rng.permutation(len(masks))[: max(2, len(masks) // 3)]
            query = second if group.volume.max() > 0 else np.sort(few)
            rest = np.setdiff1d(np.arange(len(masks)), query)
            if bank.shows[rest].sum() >= LEAST_SUPPORT and bank.shows[query].any():
                adaptation_task = AdaptationTask(bank, embedding, masks, known, trainer.average, SupportBankConfig())
                yield Episode("target", [adaptation_task], tuple(int(n) for n in query))


def _places(group: Group) -> Places:
    """As bodies lie in crops: both show the same place, and no length is asked for."""
    names = tuple(f"volume {n}" for n in group.volume)
    return Places(names, group.position.astype(float), np.zeros((len(names), 2)), np.ones(len(names)))


def _loader(drawn: _Drawn, workers: int) -> Iterator[Group | GroupBatch]:
    loader: DataLoader[Group | GroupBatch] = DataLoader(
        drawn, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None, collate_fn=lambda x: x
    )
    return iter(loader)


def export_start(decoder: SelfSamplingDecoder, path: Path, *, encoder: SmallEncoder) -> None:
    """Write a start; it says which encoder's weights it is for."""
    write_weights(path, decoder.state_dict(), {"encoder_sha256": encoder.weights_sha256})


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _log(out: Path, line: dict[str, object]) -> None:
    with out.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
