"""Fitting the decoder to a few labelled slices, on cached embeddings only (Xie et al., 2024)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.fewshot.config import AdaptationConfig
from ssmsam.fewshot.episodes import AdaptationTasks, QueryBatch, with_truth
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import Proposal, TargetDecoder
from ssmsam.progress import Progress, silent, stop_if_cancelled


def proposal_loss(
    proposal: Proposal, target: torch.Tensor, weight: torch.Tensor | None = None, *, judge_presence: bool = True
) -> torch.Tensor:
    """Dice where the target is present and cross-entropy everywhere, and the presence's cross-entropy.

    ``target`` (N, 1, S, S) in [0, 1]; ``weight`` the same shape: 0 where nothing is known.
    """
    truth = target[:, 0]
    known = torch.ones_like(truth) if weight is None else weight[:, 0]
    present = (truth.amax((1, 2)) > 0.5).float()
    probability = proposal.logits.sigmoid() * known
    overlap = 2 * (probability * truth).sum((1, 2)) + 1
    dice = 1 - overlap / (probability.sum((1, 2)) + (truth * known).sum((1, 2)) + 1)
    entropy = F.binary_cross_entropy_with_logits(proposal.logits, truth, reduction="none")
    entropy = (entropy * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
    total = dice * present + 4 * entropy
    if judge_presence:
        total = total + 0.5 * F.binary_cross_entropy_with_logits(proposal.presence, present, reduction="none")
    return total.mean()


Watch = Callable[[int, TargetDecoder], None]
"""``watch(steps made, decoder so far)``."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """The fitted decoder, the seconds and the loss of each step."""

    decoder: TargetDecoder
    seconds: float
    losses: tuple[float, ...]


def fit(
    decoder: TargetDecoder,
    tasks: AdaptationTasks,
    config: AdaptationConfig,
    *,
    held_out: Mapping[str, Sequence[int]] | None = None,
    share: float = 1.0,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Adapted:
    """A copy of the decoder after gradient steps on the tasks. The embeddings are fixed: no encoder is at hand.

    Every slice is a query in its turn, with the others as context. ``held_out`` slices (label -> numbers) are neither
    queries nor context. Only a ``share`` of the steps is made, where more are known to do harm. ``watch`` sees the
    decoder after every step. Raising :class:`~ssmsam.progress.Cancelled` in ``progress("adapt", done, total)`` stops
    between two steps.
    """
    fitted = copy.deepcopy(decoder).train().requires_grad_(False)
    fitted.to(memory_format=torch.channels_last)  # convolutions take 15 % less time
    optimiser = _optimiser(fitted, config)
    stream = _query_batches(tasks, config, held_out or {})
    losses: list[float] = []
    started = time.perf_counter()
    steps = max(1, round(config.steps * share)) if config.steps else 0
    for step in range(steps):
        progress("adapt", step, steps)
        if time.perf_counter() - started > config.budget_s:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate(step, config) * group["scale"]
        losses.append(_step(fitted, optimiser, next(stream), config))
        if watch:
            watch(step + 1, fitted)
    fitted.to(memory_format=torch.contiguous_format)  # as it comes from a file
    progress("adapt", steps, steps)
    return Adapted(fitted.eval().requires_grad_(False), time.perf_counter() - started, tuple(losses))


def _optimiser(decoder: TargetDecoder, config: AdaptationConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [parameter.requires_grad_(True) for parameter in parameters], "scale": scale}
        for parameters, scale in decoder.rated()
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _step(
    decoder: TargetDecoder,
    optimiser: torch.optim.Optimizer,
    query_batches: list[tuple[QueryBatch, float]],
    config: AdaptationConfig,
) -> float:
    """One step of the optimiser over the query batches of several labels and their shares of the loss."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for query_batch, share in query_batches:
        with _interruptible():
            proposal = decoder(query_batch.embedding, query_batch.context, features=query_batch.features)
            # with the target on every slice, presence would learn to say yes to everything
            loss = (
                proposal_loss(proposal, query_batch.masks, query_batch.known, judge_presence=query_batch.judged) * share
            )
            loss.backward()
        total += float(loss.detach())
    nn.utils.clip_grad_norm_(decoder.adaptable(), config.clip_norm)
    optimiser.step()
    return total


@contextmanager
def _interruptible() -> Iterator[None]:
    """Between any two operations in this block, forwards and backwards, the work may be cancelled: a step takes seconds
    where several users share a processor."""

    def looked(tensor: torch.Tensor) -> torch.Tensor:
        stop_if_cancelled()
        return tensor.detach()  # kept as it is, an operation's result would keep the operation alive for ever

    with torch.autograd.graph.saved_tensors_hooks(looked, looked):
        yield


def _query_batches(
    tasks: AdaptationTasks, config: AdaptationConfig, held_out: Mapping[str, Sequence[int]]
) -> Iterator[list[tuple[QueryBatch, float]]]:
    """Endless: each step has ``batch`` queries in one view, spread over the labels."""
    rng = np.random.default_rng(config.seed)
    hidden = {label: tuple(held_out.get(label, ())) for label in tasks}
    everything = [
        (label, number) for label, views in tasks.items() for number in query_slices(views[0].bank, hidden[label])
    ]
    views = len(next(iter(tasks.values())))
    waiting: list[tuple[str, int]] = []
    while True:
        view = int(rng.integers(views))
        while len(waiting) < config.batch:
            waiting += [everything[n] for n in rng.permutation(len(everything))]
        picked, waiting = waiting[: config.batch], waiting[config.batch :]
        query_batches = []
        for label in sorted({name for name, _ in picked}):
            numbers = [number for name, number in picked if name == label]
            adaptation_task = tasks[label][view]
            if _alone(adaptation_task.bank, hidden[label]):
                # in another view than its own where there is one: in the same there is nothing to learn
                other = (view + int(rng.integers(1, max(2, views)))) % views
                query_batch = adaptation_task.query_batch_from(numbers, tasks[label][other], hidden=hidden[label])
            else:
                query_batch = adaptation_task.query_batch(numbers, hidden=hidden[label])
                shares = rng.uniform(0, config.prior_truth, len(numbers)).tolist()
                query_batch = with_truth(query_batch, adaptation_task.bank, numbers, shares)
            query_batches.append((query_batch, len(numbers) / len(picked)))
        yield query_batches


def query_slices(bank: SupportBank, hidden: Sequence[int] = ()) -> list[int]:
    """Slices without which another one still shows the target; all when only one shows it."""
    open_ = [n for n in range(len(bank)) if n not in hidden]
    if not _alone(bank, hidden):
        return open_
    return [n for n in open_ if bank.shows[n]] or open_


def _alone(bank: SupportBank, hidden: Sequence[int]) -> bool:
    shows = bank.shows.copy()
    shows[list(hidden)] = False
    return int(shows.sum()) <= 1


def rate(step: int, config: AdaptationConfig) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / config.warm_up)
    return config.learning_rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / max(1, config.steps))) / 2)
