"""Training what the few-shot decoder puts right after held-out slices, on answers that were made once.

Everything else is frozen: an episode is answered as the product answers it, what the correction would read is kept,
and the small network then goes over it many times in little time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ssmsam.embeddings.embedder import slice_descriptors
from ssmsam.fewshot.adaptation import proposal_loss
from ssmsam.fewshot.config import SupportBankConfig
from ssmsam.fewshot.episodes import AdaptationTask
from ssmsam.fewshot.estimate import held_out_answers
from ssmsam.fewshot.support_bank import Places, SupportBank
from ssmsam.models.encoder import Batch, take
from ssmsam.models.fewshot_decoder import DecoderContext, Proposal
from ssmsam.models.fewshot_fused import FusedTargetNetwork, HeldOutCorrection
from ssmsam.progress import Progress, silent
from ssmsam_research.training.fewshot_episodes import (
    STRENGTH,
    EmbeddedVolume,
    Episode,
    FewShotEpisodeConfig,
    FewShotEpisodes,
    estranged_view,
)
from ssmsam_research.training.proposals import corrected


@dataclass(frozen=True)
class CorrectionConfig:
    """How many episodes are answered, and how they are gone over. All numbers are guesses."""

    answered: int = 240
    """Episodes."""
    estranged_share: float = 0.5
    """Share of episodes in which the decoder sees badly, as it does an organ that it never saw."""
    corrected_share: float = 0.1
    """Share of episodes whose queries were clicked on."""
    steps: int = 3000
    batch: int = 32
    crop: int = 40
    """Side of what is seen of a query at a time, in cells, around a cell of the target or of what was found."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    average: float = 0.99
    seed: int = 0
    episodes: FewShotEpisodeConfig = field(
        default_factory=lambda: FewShotEpisodeConfig(
            queries=6,
            cross_share=0.0,
            most_supports=9,
            most_patients=1,
            own_share=0.0,
            region_share=0.35,
            union_share=0.1,
            away_share=0.15,
            scattered_share=0.25,
        )
    )

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> CorrectionConfig:
        """Raises TypeError for settings that do not exist."""
        return cls(**{**settings, "episodes": FewShotEpisodeConfig(**settings.get("episodes", {}))})


@dataclass(frozen=True, eq=False)
class Answers(Batch):
    """What :class:`~ssmsam.models.fewshot_fused.HeldOutCorrection` reads of N queries, float16: ``logits`` (N, S, S),
    ``drawn`` and ``fitted`` maps, ``error`` (N, 2, S, S), ``agreement`` (N, 1), ``held_out`` (N, HELD_OUT); the
    truth ``target`` and where it is ``known``, (N, 1, S, S)."""

    logits: torch.Tensor
    drawn: torch.Tensor
    fitted: torch.Tensor
    error: torch.Tensor
    agreement: torch.Tensor
    held_out: torch.Tensor
    target: torch.Tensor
    known: torch.Tensor

    def cropped(self, side: int, rng: np.random.Generator) -> Answers:
        """Of each query a square around a cell of the target or of what was found, around any where there is none."""
        near = (self.target[:, 0] > 0.5) | (self.logits > 0)
        size, corners = near.shape[-1], []
        for one in near.numpy():
            rows, columns = np.nonzero(one) if one.any() else np.indices(one.shape).reshape(2, -1)
            cell = rng.integers(len(rows))
            corners.append(np.clip(np.array([rows[cell], columns[cell]]) - side // 2, 0, size - side))
        windows = [(slice(y, y + side), slice(x, x + side)) for y, x in corners]

        def part(maps: torch.Tensor) -> torch.Tensor:
            if maps.ndim < 3:
                return maps
            return torch.stack([one[..., y, x] for one, (y, x) in zip(maps, windows, strict=True)])

        return Answers(**{name: part(maps) for name, maps in vars(self).items()})

    def put_right(self, correction: HeldOutCorrection) -> torch.Tensor:
        """The logits (N, S, S) with the correction, float32."""
        logits, drawn, fitted = (getattr(self, name).float() for name in ("logits", "drawn", "fitted"))
        names = "error", "agreement", "held_out"
        read = _Read(*(getattr(self, name).float() for name in names))
        return logits + correction(logits, drawn, fitted, read)


@dataclass(frozen=True, eq=False)
class _Read:
    """The fields of a DecoderContext that the correction reads."""

    error: torch.Tensor
    agreement: torch.Tensor
    held_out: torch.Tensor


@torch.no_grad()
def answered(
    network: FusedTargetNetwork, episode: Episode, *, estranged: tuple[float, int] | None, clicked: int | None
) -> Answers | None:
    """What the correction would read in an episode; None where no slice between others can be held out.

    Args:
        network: Whose correction still does nothing.
        episode: With labelled slices of the query's own volume alone.
        estranged: Strength and seed of :func:`~ssmsam_research.training.fewshot_episodes.estranged_view`.
        clicked: Seed of the clicks on the queries, None for none.
    """
    view = network.view(episode.embedding)
    if estranged is not None:
        view = estranged_view(view, *estranged)
    count = episode.supports
    shown, masks, known = take(view, torch.arange(count)), episode.masks[:count], episode.known[:count]
    bank = SupportBank.from_tensors(
        shown["image"],
        masks,
        known,
        stride=network.stride,
        places=Places(
            episode.volumes[:count],
            episode.positions[:count],
            episode.centres[:count],
            episode.cell_mm[:count],
            episode.motions,
        ),
        regression=network.regression(shown, masks, known),
    )
    config = SupportBankConfig()
    held_out = held_out_answers(network, AdaptationTask(bank, shown, masks, known, network, config))
    if held_out is None:
        return None
    bank = bank.with_errors(held_out.numbers, held_out.logits.numpy())
    if not bank.errors.any():
        return None
    asked = take(view, torch.arange(count, len(episode.masks)))
    positions, descriptors = [float(place) for place in episode.positions[count:]], slice_descriptors(asked["image"])
    context = bank.context_at(episode.query, positions, descriptors, episode.centres[count:], config=config)
    target = episode.masks[count:]
    with _read(network) as found:
        proposal = network(asked, context)
        if clicked is not None:
            network(asked, context, corrected(proposal, target, np.random.default_rng(clicked)))
    logits, drawn, fitted, _ = found[-1]
    return Answers(
        *(one.half() for one in (logits, drawn, fitted, context.error)),
        *(one.half() for one in (context.agreement, context.held_out, target, episode.known[count:])),
    )


class _read:
    """What goes into a network's correction while this is open, call by call."""

    def __init__(self, network: FusedTargetNetwork) -> None:
        self._network, self._calls = network, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, DecoderContext]]()

    def __enter__(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, DecoderContext]]:
        self._hook = self._network.correction.register_forward_pre_hook(lambda _, given: self._calls.append(given))
        return self._calls

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def episodes_answered(
    network: FusedTargetNetwork, volumes: Sequence[EmbeddedVolume], config: CorrectionConfig, *, progress: Progress
) -> Iterator[Answers]:
    """Answers to ``config.answered`` episodes, the same for one seed."""
    episodes, rng = FewShotEpisodes(volumes, config.episodes), np.random.default_rng(config.seed)
    done = 0
    while done < config.answered:
        episode = episodes.draw(rng)
        estranged = (float(rng.uniform(*STRENGTH)), int(rng.integers(2**31)))
        answers = answered(
            network,
            episode,
            estranged=estranged if rng.random() < config.estranged_share else None,
            clicked=int(rng.integers(2**31)) if rng.random() < config.corrected_share else None,
        )
        if answers is not None:
            done += 1
            progress("answer", done, config.answered)
            yield answers


def train_correction(
    network: FusedTargetNetwork, answers: Answers, config: CorrectionConfig, *, progress: Progress = silent
) -> list[float]:
    """Train ``network.correction``; the losses of all steps. Learning rate and average as for the other parts."""
    trained = network.correction.requires_grad_(True).train()
    average = torch.optim.swa_utils.AveragedModel(
        trained, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    optimiser = torch.optim.AdamW(trained.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.steps)
    rng, losses = np.random.default_rng(config.seed), []
    for step in range(config.steps):
        some = answers[torch.from_numpy(rng.integers(len(answers.logits), size=config.batch))]
        some = some.cropped(min(config.crop, some.logits.shape[-1]), rng)
        logits = some.put_right(trained)
        proposal = Proposal(logits, logits.new_zeros(len(logits)))
        loss = proposal_loss(proposal, some.target.float(), some.known.float(), judge_presence=False)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(trained)
        losses.append(float(loss.detach()))
        progress("train", step + 1, config.steps)
    trained.load_state_dict(average.module.state_dict())
    return losses
