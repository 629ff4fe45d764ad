"""The meta-learner: a start from which a few gradient steps on labelled slices go far.

First-order MAML (Finn et al., 2017) as Zhang et al. (WACV 2024) use it: a copy of the decoder is adapted to the support
of an episode, and the gradient of the query's loss at the *adapted* weights is applied to the start. The inner loop is
the online optimiser itself, :func:`ssmsam.fewshot.adaptation.fit`. Its learning rates can be learned too, one for each
group of parameters: with theta' = theta - exp(r) u, to first order dL/dr is the product of dL/dtheta' with
theta' - theta.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.adaptation import AdaptationConfig, fit
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.lesson import lessons
from ssmsam.fewshot.losses import proposal_loss
from ssmsam.fewshot.support import Support
from ssmsam.progress import Progress, silent
from ssmsam.ssm.episodes import Episode, episodes
from ssmsam.ssm.network import SelfSamplingDecoder

_INNER = AdaptationConfig(steps=3, budget_s=float("inf"), warm_up=1)


@dataclass(frozen=True)
class MetaConfig:
    """``steps`` of the outer AdamW, each over ``tasks`` episodes; ``budget_s`` bounds their time."""

    steps: int = 100
    budget_s: float = 600.0
    tasks: int = 3
    outer_rate: float = 2e-4
    rates_rate: float = 0.05
    """Step of the logarithms of the learning rates, where ``learn_rates``."""
    learn_rates: bool = False
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    queries: int = 6
    """At most this many query slices of an episode."""
    inner: AdaptationConfig = _INNER
    seed: int = 0


@dataclass(frozen=True, eq=False)
class MetaTrained:
    """The new start, the mean query loss after adaptation of each outer step, and the seconds of all."""

    decoder: TargetDecoder
    losses: tuple[float, ...]
    seconds: float


class MetaLearner:
    """Owns the start and its outer optimiser. ``decoder`` itself is changed, in place."""

    def __init__(self, decoder: TargetDecoder, *, config: MetaConfig) -> None:
        self.decoder = decoder
        self.config = config
        self._outer = torch.optim.AdamW(
            [parameter.requires_grad_(True) for parameter in decoder.adaptable()],
            lr=config.outer_rate,
            weight_decay=config.weight_decay,
        )

    def step(self, tasks: Sequence[Episode], *, seed: int) -> float:
        """One outer step over some episodes: the mean loss on their queries after adaptation."""
        self._outer.zero_grad(set_to_none=True)
        losses, slopes = [], []
        for number, task in enumerate(tasks):
            loss, slope = self._through(task, seed + number, len(tasks))
            losses.append(loss)
            slopes.append(slope)
        nn.utils.clip_grad_norm_(self.decoder.adaptable(), self.config.clip_norm)
        self._outer.step()
        if self.config.learn_rates and isinstance(self.decoder, SelfSamplingDecoder):
            self._learn_rates(self.decoder, np.mean(slopes, axis=0))
        return float(np.mean(losses))

    def _through(self, task: Episode, seed: int, tasks: int) -> tuple[float, list[float]]:
        """Adapt a copy to one episode, judge it on the query, and give the start the gradient.

        Also the slope of the loss over the logarithm of each group's learning rate.
        """
        inner = replace(self.config.inner, seed=seed)
        fitted = fit(self.decoder, task.taught, inner, held_out=task.held_out).decoder
        learned = [parameter.requires_grad_(True) for parameter in fitted.adaptable()]
        exercise = task.exercise(most=self.config.queries)
        proposal = fitted(exercise.embedding, exercise.shown, reading=exercise.reading)
        loss = proposal_loss(proposal, exercise.masks, exercise.known, judge_presence=exercise.judged)
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        for start, gradient in zip(self.decoder.adaptable(), gradients, strict=True):
            if gradient is not None:
                start.grad = gradient / tasks if start.grad is None else start.grad + gradient / tasks
        return float(loss.detach()), self._slopes(fitted, dict(zip(map(id, learned), gradients, strict=True)))

    def _slopes(self, fitted: TargetDecoder, gradients: dict[int, torch.Tensor | None]) -> list[float]:
        slopes = []
        for (after, _), (before, _) in zip(fitted.rated(), self.decoder.rated(), strict=True):
            moved = [
                float((gradients[id(new)] * (new.detach() - old.detach())).sum())  # type: ignore[operator]
                for new, old in zip(after, before, strict=True)
                if gradients[id(new)] is not None
            ]
            slopes.append(sum(moved))
        return slopes

    def _learn_rates(self, decoder: SelfSamplingDecoder, slopes: np.ndarray) -> None:
        """A step of fixed length down the slope, by its sign: the losses of episodes are of very different size."""
        with torch.no_grad():
            decoder.log_rates -= self.config.rates_rate * torch.from_numpy(np.sign(slopes)).to(decoder.log_rates)
            decoder.log_rates.clamp_(-3, 3)


def meta_train(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    config: MetaConfig,
    progress: Progress = silent,
    heard: Callable[[float], None] | None = None,
) -> MetaTrained:
    """A new start from everything that is annotated; ``decoder`` stays as it is. ``heard`` is told each step's loss.

    Raises :class:`~ssmsam.fewshot.support.NothingToLearn`. Raising :class:`~ssmsam.progress.Cancelled` in
    ``progress("meta", done, total)`` stops between two outer steps.
    """

    start = copy.deepcopy(decoder).requires_grad_(False)
    taught = lessons(
        support, embedder, start, config=config.inner.views, bank=config.inner.bank, seed=config.seed, progress=progress
    )
    stream = episodes(taught, np.random.default_rng(config.seed))
    return trained(MetaLearner(start, config=config), stream, progress=progress, heard=heard)


def trained(
    learner: MetaLearner,
    stream: Iterator[Episode],
    *,
    progress: Progress = silent,
    heard: Callable[[float], None] | None = None,
) -> MetaTrained:
    """Outer steps until their number or their time is used up."""
    config = learner.config
    losses: list[float] = []
    began = time.perf_counter()
    for step in range(config.steps):
        progress("meta", step, config.steps)
        if time.perf_counter() - began > config.budget_s:
            break
        losses.append(learner.step([next(stream) for _ in range(config.tasks)], seed=config.seed + step * config.tasks))
        if heard is not None:
            heard(losses[-1])
    progress("meta", config.steps, config.steps)
    finished = learner.decoder.eval().requires_grad_(False)
    return MetaTrained(finished, tuple(losses), time.perf_counter() - began)
