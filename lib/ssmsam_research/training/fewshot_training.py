"""Teaching the fused few-shot decoder, online optimiser included, on embedded slices."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssmsam.embeddings.embedder import slice_descriptors
from ssmsam.fewshot.adaptation import proposal_loss
from ssmsam.fewshot.config import SupportBankConfig
from ssmsam.fewshot.support_bank import SupportBank, signed_distance
from ssmsam.models.encoder import Embedding, take
from ssmsam.models.fewshot_decoder import DecoderContext, Proposal
from ssmsam.models.fewshot_fused import STAGES, FusedTargetNetwork
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.sam_encoder import IMAGE, Reduction
from ssmsam.models.support_encoding import describe
from ssmsam.progress import Progress, silent
from ssmsam_research.training.fewshot_episodes import (
    STRENGTH,
    EmbeddedVolume,
    Episode,
    FewShotEpisodeConfig,
    FewShotEpisodes,
    estranged_view,
)
from ssmsam_research.training.loop import Trainer, train_steps
from ssmsam_research.training.proposals import corrected


def begun_with_small(
    volumes: Sequence[EmbeddedVolume], small: TargetNetwork, reduction: Reduction
) -> FusedTargetNetwork:
    """The network before any training: the few-shot decoder of the small encoder, features standardised on the
    volumes, and the projection by which the pretrained encoder's output is kept."""
    network = FusedTargetNetwork()
    network.load_state_dict(small.state_dict(), strict=False)
    rng = np.random.default_rng(0)
    some = [volumes[n] for n in rng.permutation(len(volumes))[:_MEASURED]]
    found = [network.features(one.slices(rng.permutation(len(one.label))[:2])) for one in some]
    cells = torch.cat([one.permute(1, 0, 2, 3).flatten(1) for one in found], dim=1)
    cells = cells[: sum(STAGES)]  # places are of one scale already
    network.centre[: len(cells)] = cells.mean(1)
    stages = [part.std(1).square().mean().sqrt().expand(len(part)) for part in cells.split(STAGES)]
    network.spread[: len(cells)] = torch.cat(stages)
    projection = reduction.projections[IMAGE]
    network.image_mean.copy_(projection.mean)
    network.image_basis.copy_(projection.basis)
    return network


_MEASURED = 40
"""Volumes of the training on which features are standardised: a guess."""


@dataclass(frozen=True)
class FewShotTrainingConfig:
    """How long and how fast. ``steps`` counts over all resumed runs. The other numbers are guesses."""

    steps: int = 3000
    learning_rate: float = 2e-4
    new_learning_rate: float = 1e-3
    """Of the parts that the decoder did not have before."""
    batches: int = 1
    """Episodes of each step."""
    warm_up_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average: float = 0.998
    prior_share: float = 0.85
    """Share of episodes in which the interpolated shape of labelled slices is given."""
    fitted_share: float = 0.9
    """Share of episodes in which the online optimiser's answer is given."""
    fitted_weight: float = 0.3
    """Weight of the online optimiser's own loss."""
    corrected_share: float = 0.15
    estranged_share: float = 0.0
    """Share of episodes in which the decoder sees badly, as it does an organ that it never saw."""
    only: str = ""
    """The one part of the network that is trained; all of it without a name."""
    checkpoint_s: float = 120.0
    seed: int = 0
    episodes: FewShotEpisodeConfig = field(default_factory=FewShotEpisodeConfig)

    @classmethod
    def from_file(cls, path: Path) -> FewShotTrainingConfig:
        """What :func:`train_fewshot` wrote beside its weights. Raises TypeError for settings that do not exist."""
        settings = json.loads(path.read_text())
        return cls(**{**settings, "episodes": FewShotEpisodeConfig(**settings.get("episodes", {}))})


@dataclass(frozen=True, eq=False)
class Answered:
    """A decoder's proposal for an episode's queries, the online optimiser's logits, and the truth."""

    proposal: Proposal
    fitted: torch.Tensor
    target: torch.Tensor
    known: torch.Tensor
    embedding: Embedding
    context: DecoderContext


def answer(
    network: FusedTargetNetwork,
    episode: Episode,
    *,
    prior: bool = True,
    fitted: bool = True,
    estranged: tuple[float, int] | None = None,
) -> Answered:
    """Ask for the queries of an episode. Unlike in the server, gradients flow through what the supports say.
    ``estranged`` are strength and seed of :func:`~ssmsam_research.training.fewshot_episodes.estranged_view`."""
    view = network.view(episode.embedding)
    if estranged is not None:
        view = estranged_view(view, *estranged)
    context = _context(network, episode, view)
    weights, fit = _solved(network, episode, view)
    queries = torch.arange(episode.supports, len(episode.masks))
    asked = take(view, queries)
    own = network.optimiser.logits(asked["levels"][2], weights.expand(len(queries), -1))
    if fitted:
        context = replace(context, weights=weights.expand(len(queries), -1), fit=fit.expand(len(queries))[:, None])
    else:
        context = replace(context, weights=torch.zeros(len(queries), weights.shape[1]))
    if not prior:
        without = {name: torch.zeros_like(getattr(context, name)) for name in ("prior", "trust", "agreement")}
        context = replace(context, **without)
    return Answered(network(asked, context), own, episode.masks[queries], episode.known[queries], asked, context)


def _solved(network: FusedTargetNetwork, episode: Episode, view: Embedding) -> tuple[torch.Tensor, torch.Tensor]:
    """The online optimiser's weights and fit, from the slices that the product would take: see
    :class:`~ssmsam.fewshot.support_bank.SupportBank`."""
    count = episode.supports
    own = torch.tensor([volume == episode.query for volume in episode.volumes[:count]])
    shows = episode.masks[:count].flatten(1).amax(1) > 0.5
    rows = torch.nonzero(own if int((own & shows).sum()) >= 2 else torch.ones_like(own))[:, 0]
    regression = network.optimiser.regression(view["levels"][2][rows], episode.masks[rows], episode.known[rows])
    chosen, across = torch.ones(1, len(rows)), (~own[rows]).any()[None].float()
    weights = network.optimiser.solve(regression.sums.weighted(chosen), across)
    return weights, network.optimiser.left_out(regression.sums, chosen, across)


def _context(network: FusedTargetNetwork, episode: Episode, view: Embedding) -> DecoderContext:
    count = episode.supports
    masks, known = episode.masks[:count], episode.known[:count]
    images = view["image"]
    descriptors = slice_descriptors(images.detach())
    bank = SupportBank(
        encoding=describe(images[:count], masks, known, network.stride),
        volumes=episode.volumes[:count],
        positions=episode.positions[:count],
        distances=np.stack([signed_distance(mask) for mask in (masks[:, 0] > 0.5).numpy()]),
        descriptors=descriptors[:count],
        centres=episode.centres[:count],
        cell_mm=episode.cell_mm[:count],
        pseudo_labelled=np.zeros(count, dtype=bool),
        errors=np.zeros((count, *masks.shape[-2:]), dtype=np.float32),
        held_out=np.zeros((count, 3), dtype=np.float32),
        motions=episode.motions,
    )
    positions = [float(place) for place in episode.positions[count:]]
    return bank.context_at(
        episode.query,
        positions,
        descriptors[count:],
        episode.centres[count:],
        config=SupportBankConfig(),
        atlas=episode.atlas,
    )


class FewShotTrainer(Trainer):
    """Everything that a checkpoint holds."""

    model: FusedTargetNetwork
    average: FusedTargetNetwork

    def __init__(self, network: FusedTargetNetwork, config: FewShotTrainingConfig) -> None:
        self.config = config
        self.model = network.train().requires_grad_(not config.only)
        if config.only:
            getattr(self.model, config.only).requires_grad_(True)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        parts = "optimiser", "join8", "join4", "fitted2", "fitted8", "follow", "atlas2", "atlas8", "carry", "shape"
        new = tuple(f"{name}." for name in parts)
        parameters = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        rates = [
            ([p for n, p in parameters.items() if not n.startswith(new)], config.learning_rate),
            ([p for n, p in parameters.items() if n.startswith(new)], config.new_learning_rate),
        ]
        self.optimiser = torch.optim.AdamW(
            [{"params": some, "lr": rate, "scale": rate} for some, rate in rates], weight_decay=config.weight_decay
        )
        self.step, self.seconds, self.batches = 0, 0.0, config.batches

    def _set_rate(self) -> None:
        """Linear warm-up, then cosine over all steps."""
        done = min(1.0, self.step / self.config.steps)
        factor = min(1.0, (self.step + 1) / self.config.warm_up_steps)
        factor *= 0.03 + 0.97 * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = group["scale"] * factor

    def train_step(self, episodes: FewShotEpisodes) -> dict[str, float]:
        """One step of the optimiser on ``config.batches`` episodes; the mean of its losses by name."""
        self._set_rate()
        config = self.config
        return self.take_step(
            lambda rng: self.backward(episodes.draw(rng), rng),
            seed=config.seed,
            clip_norm=config.clip_norm,
            decay=config.average,
        )

    def backward(self, episode: Episode, rng: np.random.Generator) -> dict[str, float]:
        """Add the gradients of an episode; its losses by name."""
        config = self.config
        fitted = rng.random() < config.fitted_share
        estranged = (float(rng.uniform(*STRENGTH)), int(rng.integers(2**31)))
        found = answer(
            self.model,
            episode,
            prior=rng.random() < config.prior_share,
            fitted=fitted,
            estranged=estranged if rng.random() < config.estranged_share else None,
        )
        losses = {"proposal": proposal_loss(found.proposal, found.target, found.known)}
        side = found.fitted.shape[-2], found.fitted.shape[-1]
        small = nn.functional.adaptive_avg_pool2d(found.target, side)
        own = Proposal(found.fitted, found.proposal.presence.detach())
        losses["fitted"] = config.fitted_weight * proposal_loss(own, small, judge_presence=False)
        if rng.random() < config.corrected_share:
            corrections = corrected(found.proposal, found.target, rng)
            again = self.model(found.embedding, found.context, corrections)
            losses["corrected"] = proposal_loss(again, found.target, found.known, judge_presence=False)
        torch.stack(list(losses.values())).sum().backward()
        kind = "within" if episode.query in episode.volumes[: episode.supports] else "over"
        return {f"{kind} {name}": float(loss.detach()) for name, loss in losses.items()}


def train_fewshot(
    volumes: Sequence[EmbeddedVolume],
    network: FusedTargetNetwork,
    *,
    out: Path,
    config: FewShotTrainingConfig,
    resume: Path | None = None,
    metadata: dict[str, str] | None = None,
    progress: Progress = silent,
) -> FewShotTrainer:
    """Train for ``config.steps`` and write the averaged decoder to ``out`` (fp16 safetensors)."""
    trainer = FewShotTrainer(network, config)
    if resume is not None:
        trainer.resume(resume)
    episodes = FewShotEpisodes(volumes, config.episodes)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".config.json").write_text(json.dumps(asdict(config), indent=1))
    train_steps(
        trainer,
        lambda: trainer.train_step(episodes),
        steps=config.steps,
        out=out,
        log_every=50,
        checkpoint_s=config.checkpoint_s,
        metadata=metadata or {},
        progress=progress,
    )
    return trainer
