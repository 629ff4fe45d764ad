"""The meta-learner: an initialisation from which a few gradient steps on labelled slices go far.

First-order MAML (Finn et al., 2017) as Zhang et al. (WACV 2024) use it: a copy of the decoder is adapted to the support
of an episode, and the gradient of the query's loss at the *adapted* weights is applied to the initialisation. The inner
loop is the online optimiser itself, :func:`ssmsam.fewshot.adaptation.fit`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import fit, proposal_loss
from ssmsam.fewshot.config import HELD_OUT_OF, LEAST_SUPPORT, AdaptationConfig, MetaConfig
from ssmsam.fewshot.episodes import AdaptationTask, AdaptationTasks, QueryBatch, adaptation_tasks
from ssmsam.fewshot.estimate import Estimate, overlap
from ssmsam.fewshot.support import LabelledSlice, NothingToLearn, Support, checked
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Episode:
    """``views`` are one label's adaptation tasks, and ``query`` the numbers of the slices that adaptation never
    sees."""

    label: str
    views: Sequence[AdaptationTask]
    query: tuple[int, ...]

    @property
    def tasks(self) -> AdaptationTasks:
        return {self.label: self.views}

    @property
    def held_out(self) -> dict[str, tuple[int, ...]]:
        return {self.label: self.query}

    def query_batch(self, *, most: int) -> QueryBatch:
        """The query slices as they are, at most so many, with the support as context and no other query slice."""
        return self.views[0].query_batch(self.query[:most], hidden=self.query)


def splits(bank: SupportBank, rng: np.random.Generator) -> tuple[int, ...] | None:
    """A choice of query slices: all of one volume, or some slices of each. None when nothing can be held out."""
    volumes = np.array(bank.volumes)
    names = sorted(set(bank.volumes))
    choices = [np.flatnonzero(volumes == name) for name in names] if len(names) > 1 else []
    rng.shuffle(choices)
    shuffled = rng.permutation(len(bank))
    within = [np.sort(shuffled[: max(1, len(bank) // 3)])]
    for query in [*within, *choices] if rng.random() < 0.5 else [*choices, *within]:
        rest = np.setdiff1d(np.arange(len(bank)), query)
        if bank.shows[rest].sum() >= LEAST_SUPPORT and bank.shows[query].any():
            return tuple(int(n) for n in rng.permutation(query))
    return None


def episodes(tasks: AdaptationTasks, rng: np.random.Generator) -> Iterator[Episode]:
    """Endless: a label, then a split of its slices. Raises :class:`NothingToLearn` when no label can be split."""
    usable = [label for label, views in tasks.items() if views[0].bank.shows.sum() > LEAST_SUPPORT]
    if not usable:
        raise NothingToLearn(
            f"meta-learning needs a label that is annotated on at least {LEAST_SUPPORT + 1} slices that show it: "
            "annotate more slices, or use the models as they are"
        )
    while True:
        label = usable[int(rng.integers(len(usable)))]
        query = splits(tasks[label][0].bank, rng)
        if query is not None:
            yield Episode(label, tasks[label], query)


@dataclass(frozen=True, eq=False)
class MetaTrained:
    """The new initialisation, the mean query loss after adaptation of each outer step, and the seconds of all."""

    decoder: TargetDecoder
    losses: tuple[float, ...]
    seconds: float


class MetaLearner:
    """Owns the initialisation and its outer optimiser. ``decoder`` itself is changed, in place."""

    def __init__(self, decoder: TargetDecoder, *, config: MetaConfig) -> None:
        self.decoder = decoder
        self.config = config
        self._outer = torch.optim.AdamW(
            [parameter.requires_grad_(True) for parameter in decoder.adaptable()],
            lr=config.outer_rate,
            weight_decay=config.weight_decay,
        )

    def step(self, episodes: Sequence[Episode], *, seed: int) -> float:
        """One outer step over some episodes: the mean loss on their queries after adaptation."""
        self._outer.zero_grad(set_to_none=True)
        losses = [self._through(episode, seed + number, len(episodes)) for number, episode in enumerate(episodes)]
        nn.utils.clip_grad_norm_(self.decoder.adaptable(), self.config.clip_norm)
        self._outer.step()
        return float(np.mean(losses))

    def adapted(self, fitted: TargetDecoder, gradients: Mapping[int, torch.Tensor | None]) -> None:
        """For subclasses: what an episode's adaptation led to, and the query loss's gradients there by parameter id."""

    def _through(self, episode: Episode, seed: int, episodes: int) -> float:
        """Adapt a copy to one episode, judge it on the query, and give the initialisation the gradient."""
        inner = replace(self.config.inner, seed=seed)
        fitted = fit(self.decoder, episode.tasks, inner, held_out=episode.held_out).decoder
        learned = [parameter.requires_grad_(True) for parameter in fitted.adaptable()]
        query_batch = episode.query_batch(most=self.config.queries)
        proposal = fitted(query_batch.embedding, query_batch.context, features=query_batch.features)
        loss = proposal_loss(proposal, query_batch.masks, query_batch.known, judge_presence=query_batch.judged)
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        for initial, gradient in zip(self.decoder.adaptable(), gradients, strict=True):
            if gradient is not None:
                share = gradient / episodes
                initial.grad = share if initial.grad is None else initial.grad + share
        self.adapted(fitted, dict(zip(map(id, learned), gradients, strict=True)))
        return float(loss.detach())


def meta_train(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    config: MetaConfig,
    progress: Progress = silent,
    on_loss: Callable[[float], None] | None = None,
) -> MetaTrained:
    """A new initialisation from everything that is annotated; ``decoder`` stays as it is. ``on_loss`` gets each step's
    loss.

    Raises :class:`~ssmsam.fewshot.support.NothingToLearn`. Raising :class:`~ssmsam.progress.Cancelled` in
    ``progress("meta", done, total)`` stops between two outer steps.
    """

    initial = copy.deepcopy(decoder).requires_grad_(False)
    tasks = adaptation_tasks(
        support, embedder, initial, config=replace(config.inner, seed=config.seed), progress=progress
    )
    stream = episodes(tasks, np.random.default_rng(config.seed))
    return trained(MetaLearner(initial, config=config), stream, progress=progress, on_loss=on_loss)


def trained(
    learner: MetaLearner,
    stream: Iterator[Episode],
    *,
    progress: Progress = silent,
    on_loss: Callable[[float], None] | None = None,
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
        if on_loss is not None:
            on_loss(losses[-1])
    progress("meta", config.steps, config.steps)
    finished = learner.decoder.eval().requires_grad_(False)
    return MetaTrained(finished, tuple(losses), time.perf_counter() - began)


HeldOut = Mapping[str, tuple[int, ...]]
"""Label -> which of its slices are held out, as adaptation tasks number them."""


def hold_out(support: Support) -> tuple[Support, HeldOut]:
    """The slices to train on, and which are not: of each label and volume every fourth that shows the label.

    Raises :class:`~ssmsam.fewshot.support.NothingToLearn`.
    """
    rest: dict[str, list[LabelledSlice]] = {}
    held_out: dict[str, tuple[int, ...]] = {}
    for label, slices in checked(support).items():
        chosen: list[int] = []
        for volume in dict.fromkeys(one.volume for one in slices):
            showing = [n for n, one in enumerate(slices) if one.volume == volume and one.drawn.any()]
            if len(showing) >= HELD_OUT_OF:
                chosen += showing[1::HELD_OUT_OF]
        rest[label] = [one for n, one in enumerate(slices) if n not in chosen]
        if chosen:
            held_out[label] = tuple(chosen)
    return rest, held_out


def judged(
    decoder: TargetDecoder,
    support: Support,
    held_out: HeldOut,
    embedder: Embedder,
    *,
    config: AdaptationConfig,
    progress: Progress = silent,
) -> dict[str, Estimate]:
    """Label -> Dice on what was held out, from ``decoder`` as it is and after adapting it to all other slices."""

    def judging(_: str, done: int, total: int) -> None:
        progress("estimate", done, total)

    plain = replace(config, views=replace(config.views, views=0))
    tasks = adaptation_tasks(
        {label: support[label] for label in held_out},
        embedder,
        decoder,
        config=plain,
        progress=judging,
    )
    fitted = fit(decoder, tasks, plain, held_out=held_out, progress=judging).decoder
    return {
        label: Estimate(
            before=_dice(decoder, views[0], held_out[label]),
            after=_dice(fitted, views[0], held_out[label]),
            slices=len(held_out[label]),
        )
        for label, views in tasks.items()
    }


def _dice(decoder: TargetDecoder, adaptation_task: AdaptationTask, held_out: Sequence[int]) -> float:
    """In [0, 1] over the held-out slices, in cells."""
    common, both = overlap(decoder, adaptation_task, held_out)
    return float(common / both) if both else 1.0
