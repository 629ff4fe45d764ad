"""A few rounds of prompting on one batch: first prompt, answer, correction, answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ssmsam.models.encoder import Embedding, take
from ssmsam.models.prompt_small import (
    CLOSENESS_MM,
    LEAST_POINTS,
    Answer,
    PointKind,
    Prompts,
    SmallPromptNetwork,
    describe_target,
)
from ssmsam_research.training.clicks import SparsePrompts, correction
from ssmsam_research.training.episodes import EpisodeBatch


def play_rounds(
    network: SmallPromptNetwork, embedding: Embedding, batch: EpisodeBatch, rng: np.random.Generator, rounds: int
) -> Iterator[tuple[Answer, torch.Tensor]]:
    """Yield, round after round, the answers and (N,) where the presence was to be judged without a click."""
    query = take(embedding, batch.query)
    truth = batch.target[:, 0].cpu().numpy() > 0.5
    sparse = SparsePrompts(len(truth), max(LEAST_POINTS, rounds + 3))
    for index in torch.nonzero(~batch.by_neighbour.cpu()).flatten().tolist():
        sparse.first(index, truth[index], rng)
    prompts = _neighbour_prompts(embedding, batch)
    for turn in range(rounds):
        device = batch.target.device
        prompts = replace(prompts, points=sparse.points.clone().to(device), kinds=sparse.kinds.clone().to(device))
        answer = network(query, prompts)
        clicked = ((sparse.kinds == PointKind.POSITIVE) | (sparse.kinds == PointKind.BOX_TOP_LEFT)).any(1)
        yield answer, (~clicked).float().to(device)
        if turn + 1 == rounds:
            return
        chosen = answer.quality.argmax(1)
        previous = answer.logits.detach()[torch.arange(len(chosen), device=device), chosen][:, None]
        _correct(sparse, truth, previous[:, 0].cpu().numpy() > 0, rng)
        prompts = replace(prompts, previous=previous)


def _neighbour_prompts(embedding: Embedding, batch: EpisodeBatch) -> Prompts:
    """Dense prompts before any click: the support's mask where the target is prompted by it."""
    given = batch.by_neighbour.float()
    mask = batch.support_mask
    targets = describe_target(embedding["image"][batch.support], mask) * given[:, None, None]
    return Prompts(
        points=mask.new_zeros(len(mask), 0, 2),
        kinds=torch.zeros(len(mask), 0, dtype=torch.long, device=mask.device),
        previous=torch.zeros_like(mask),
        neighbour=(mask * 2 - 1) * given[:, None, None, None],
        closeness=torch.exp(-batch.distance_mm.float() / CLOSENESS_MM) * given,
        targets=targets,
    )


def _correct(sparse: SparsePrompts, truth: np.ndarray, answer: np.ndarray, rng: np.random.Generator) -> None:
    for index in range(len(truth)):
        click = correction(truth[index], answer[index], rng)
        if click is not None:
            sparse.add(index, *click)
