"""Protocol "active": a strategy names slices one after the other, an annotator draws them, Dice is taken after each.

One organ of one volume at a time. The annotator begins with a random slice of the organ, the same one for all
strategies. Whoever is asked where the organ ends leafs there, draws the last slice that shows it and marks the next one
as empty: together they count as one slice. Dice is three-dimensional: over the slices
that are not annotated, and over the whole volume as the user would keep it, with annotated slices as annotated.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ssmsam.active.acquisition import RULES, Rule
from ssmsam.active.forecast import Expected, descriptors, expect, probabilities
from ssmsam.active.volume_state import Choice, Reason, VolumeState
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.estimate import mean_estimate
from ssmsam.fewshot.pipeline import adapt, assembled
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.frame import draw_mask
from ssmsam_research.metrics import dice

OTHER, WHOLE = "other slices", "whole volume"
WITHIN, INTERVAL, BISECTION = "extent_random", "extent_interval", "extent_bisection"
"""What a person does who leafs through the volume first: chance among the slices of the organ, slices at a fixed
interval from its first to its last, and always the middle of the widest gap. They are told the organ's true extent,
which no other strategy is."""
BASELINES = ("foreground_random", INTERVAL)
BINS = 10
VIEWS = 3
"""How often the model is asked again without a part of the annotated slices, for the second diagram of cells."""
_SURELY_OUTSIDE = 0.01
"""Cells less probable than this are left out of the diagrams: the empty rest of a volume would make any look right."""


@dataclass(frozen=True)
class ActiveProtocol:
    """``budget`` slices are annotated in each episode, the first one included; every seed is an episode of each
    strategy. ``steps`` of adaptation after each slice, 0 only shows the decoder what is annotated."""

    strategies: tuple[str, ...] = (*RULES, WITHIN, INTERVAL, BISECTION)
    budget: int = 8
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 0
    name: ClassVar[str] = "active"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Annotator:
    """Draws slices when asked, and remembers which were ``drawn`` and which were ``emptied``, marked as empty past an
    end. Nobody else in an episode has the truth before it is over."""

    def __init__(self, truth: np.ndarray) -> None:
        self._truth = truth
        self.drawn: list[int] = []
        self.emptied: list[int] = []

    def draw(self, index: int) -> np.ndarray:
        """A copy of one slice (height, width) bool: a view would lead to all the others."""
        self.drawn.append(index)
        return np.array(self._truth[index] != 0)

    def draw_end(self, seen: int, away: int) -> dict[int, np.ndarray]:
        """The last slice with the organ in one direction, ``away`` 1 or -1, from a slice on which it was ``seen``, and
        the next one, which is empty; that one alone where the organ was seen on its last slice."""
        last = max(np.flatnonzero(self._truth.any(axis=(1, 2))), key=lambda index: away * index)
        found = {} if last == seen else {int(last): self.draw(int(last))}
        if 0 <= last + away < len(self._truth):
            found[int(last + away)] = np.zeros(self._truth.shape[1:], dtype=bool)
            self.emptied.append(int(last + away))
        return found


@dataclass(frozen=True, eq=False)
class Answered:
    """What follows from some annotated slices: the mask (slices, rows, columns) bool and what is expected of it.

    ``estimate`` is the head card's Dice in [0, 1] on slices held out, None where too few are annotated.
    """

    mask: np.ndarray
    expected: Expected
    estimate: float | None = None


class Learner:
    """The few-shot model on one volume and label. The same annotated slices give the same answer, made only once."""

    def __init__(self, query: VolumeEmbeddings, embedder: Embedder, decoder: TargetDecoder, *, steps: int = 0) -> None:
        config = FewShotConfig()
        views = config.adaptation.views if steps else replace(config.adaptation.views, views=0)
        adaptation = replace(config.adaptation, steps=steps, budget_s=float("inf"), views=views)
        # no refinement in enlarged windows: it draws better masks of the same slices, and would encode them anew at
        # every step
        self._config = replace(config, adaptation=adaptation, segmentation=replace(config.segmentation, roi=None))
        self._query, self._embedder, self._decoder = query, embedder, decoder
        self._heads: dict[frozenset[int], AdaptedTask] = {}
        self._answers: dict[frozenset[int], Answered] = {}
        self.descriptors = descriptors(query, range(query.count))

    def answer(self, label: str, masks: Mapping[int, np.ndarray]) -> Answered:
        """Adapt to the annotated slices (slice -> mask) and segment the volume."""
        key = frozenset(masks)
        if key not in self._answers:
            head = self._head(label, masks)
            every = range(self._query.count)
            expected = expect(head, self._query, every, config=self._config)[label]
            mask = assembled({label: expected.selected}, self._query).mask == 1
            self._answers[key] = Answered(mask, expected, mean_estimate(head.card))
        return self._answers[key]

    def _head(self, label: str, masks: Mapping[int, np.ndarray]) -> AdaptedTask:
        key = frozenset(masks)
        if key not in self._heads:
            support = {label: [LabelledSlice(self._query, index, mask) for index, mask in sorted(masks.items())]}
            self._heads[key] = adapt(support, self._embedder, self._decoder, pseudo_labels=False, config=self._config)
        return self._heads[key]

    def cells(self, label: str, masks: Mapping[int, np.ndarray], truth: np.ndarray) -> dict[str, list[list[float]]]:
        """How probable the target is in each cell of the slices that are not annotated, and whether it is there: bins
        for a reliability diagram, without other views and with some."""
        head = self._head(label, masks)
        other = [index for index in range(self._query.count) if index not in masks]
        side = head.decoder.logits_side
        there = np.stack([draw_mask(truth[index], self._query.frame, side)[0, 0].numpy() for index in other]) > 0.5
        bins = {}
        for name, views in (("cells", 0), (f"cells, {VIEWS} views", VIEWS)):
            found = probabilities(head, self._query, labels=[label], views=views, config=self._config)[label][other]
            counted = found > _SURELY_OUTSIDE
            bins[name] = binned(found[counted], there[counted])
        return bins

    def state(self, label: str, masks: Mapping[int, np.ndarray]) -> VolumeState:
        """All that a strategy is shown."""
        return VolumeState(
            count=self._query.count,
            slice_mm=self._query.slice_mm,
            descriptors=self.descriptors,
            annotated={label: {index: bool(mask.any()) for index, mask in masks.items()}},
            forecasts={label: self.answer(label, masks).expected.forecast},
        )


def run_episode(
    learner: Learner, label: str, annotator: Annotator, rule: Rule, *, start: int, budget: int, rng: np.random.Generator
) -> list[tuple[dict[int, np.ndarray], Answered]]:
    """After every annotated slice: the masks so far, and the model's answer. Ends early when nothing is left."""
    masks = {start: annotator.draw(start)}
    steps = []
    while True:
        steps.append((dict(masks), learner.answer(label, masks)))
        if len(steps) >= budget:
            return steps
        state = learner.state(label, masks)
        choices = rule(state, 1, [label], rng)
        if not choices:
            return steps
        masks |= drawn_for(choices[0], label, state, annotator)


def drawn_for(choice: Choice, label: str, state: VolumeState, annotator: Annotator) -> dict[int, np.ndarray]:
    """What an annotator draws who is asked for a slice, or for an end of the organ."""
    reason = choice.reasons.get(label)
    if reason is None or not reason.numbers.get("find_end"):
        return {choice.index: annotator.draw(choice.index)}
    seen = min(state.showing(label), key=lambda index: abs(index - choice.index))
    return annotator.draw_end(seen, 1 if choice.index > seen else -1)


def measure_label(learner: Learner, label: str, truth: np.ndarray, protocol: ActiveProtocol) -> list[dict[str, Any]]:
    """Records, ready for JSON, of all strategies and seeds on one organ: one for every number of annotated slices."""
    extent = np.flatnonzero(truth.any(axis=(1, 2)))
    records = []
    for seed in protocol.seeds:
        start = int(np.random.default_rng([seed, zlib.crc32(label.encode())]).choice(extent))
        for strategy in protocol.strategies:
            rng = np.random.default_rng([seed, zlib.crc32(f"{label} {strategy}".encode())])
            rule = TOLD[strategy](extent.tolist(), protocol.budget) if strategy in TOLD else RULES[strategy]
            annotator = Annotator(truth)
            steps = run_episode(learner, label, annotator, rule, start=start, budget=protocol.budget, rng=rng)
            for number, (masks, answered) in enumerate(steps, 1):
                scored = score(masks, answered, truth)
                if number == len(steps):
                    scored["reliability"] |= learner.cells(label, masks, truth)
                notes = {"label": label, "strategy": strategy, "seed": seed, "n": number}
                records.append({**notes, "slice": annotator.drawn[number - 1], **scored})
    return records


def within(extent: Sequence[int], budget: int) -> Rule:
    """Chance among given slices."""

    def rule(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
        return _drawn(
            rng.permutation(_left(extent, state, labels)).tolist()[:k], labels, "drawn at random from the organ"
        )

    return rule


def at_interval(extent: Sequence[int], budget: int) -> Rule:
    """``budget - 1`` slices at a fixed interval, the first and the last of the organ among them: the annotator has
    begun with one already. The one that is farthest from what is annotated comes first."""
    wanted = np.unique(np.linspace(extent[0], extent[-1], max(2, budget - 1)).round().astype(int)).tolist()

    def rule(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
        left = _left(wanted, state, labels) or _left(extent, state, labels)
        known = sorted(frozenset[int]().union(*(state.known(label) for label in labels)))
        farthest = sorted(left, key=lambda index: (-min(abs(index - one) for one in known), index))
        return _drawn(farthest[:k], labels, "one of several at a fixed interval", ends=(extent[0], extent[-1]))

    return rule


def bisected(extent: Sequence[int], budget: int) -> Rule:
    """The two ends of the organ, then always the middle of the widest gap between annotated slices."""

    def rule(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
        ends = _left(sorted({extent[0], extent[-1]}), state, labels)
        known = sorted(frozenset[int]().union(*(state.known(label) for label in labels)))
        gaps = sorted(pairwise(known), key=lambda gap: gap[0] - gap[1])
        middles = [(low + high) // 2 for low, high in gaps if high - low > 1]
        return _drawn([*ends, *middles][:k], labels, "in the middle of the widest gap", ends=(extent[0], extent[-1]))

    return rule


TOLD: Mapping[str, Callable[[Sequence[int], int], Rule]] = {
    WITHIN: within,
    INTERVAL: at_interval,
    BISECTION: bisected,
}
"""Rules that are told the slices of the organ and the budget."""
STRATEGIES = ActiveProtocol.strategies


def _left(slices: Sequence[int], state: VolumeState, labels: Sequence[str]) -> list[int]:
    return [index for index in slices if any(index not in state.known(label) for label in labels)]


def _drawn(slices: Sequence[int], labels: Sequence[str], why: str, *, ends: Collection[int] = ()) -> list[Choice]:
    chosen = []
    for index in slices:
        reason = Reason(f"slice {index} is {why}", {"find_end": 1.0} if index in ends else {})
        chosen.append(Choice(index, dict.fromkeys(labels, reason)))
    return chosen


def score(masks: Mapping[int, np.ndarray], answered: Answered, truth: np.ndarray) -> dict[str, Any]:
    """Dice, the Dice that was expected, and how expectation and truth go together slice by slice."""
    other = np.ones(len(truth), dtype=bool)
    other[list(masks)] = False
    kept = answered.mask.copy()
    for index, mask in masks.items():
        kept[index] = mask
    forecast = answered.expected.forecast
    losses = np.array([1 - dice(kept[index], truth[index]) / 100 for index in range(len(truth))])
    drawn = other & (forecast.area > 0)
    return {
        "dice": {
            OTHER: round(dice(kept[other], truth[other]), 3),
            WHOLE: round(dice(kept, truth), 3),
        },
        "expected_dice": round(100 * forecast.dice, 3),
        "estimate": None if answered.estimate is None else round(100 * answered.estimate, 3),
        "reliability": {
            "loss of drawn slices": binned(forecast.loss[drawn], losses[drawn]),
            "presence": binned(forecast.presence[other], truth.any(axis=(1, 2))[other]),
        },
    }


def binned(expected: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """[count, sum of expectations, sum of truths] for equal bins of expectations in [0, 1]."""
    bins = np.clip((np.asarray(expected) * BINS).astype(int), 0, BINS - 1)
    columns = [np.bincount(bins, weights=w, minlength=BINS) for w in (np.ones(len(bins)), expected, true)]
    return [[round(float(value), 4) for value in row] for row in zip(*columns, strict=True)]
