"""How good an adapted decoder is on slices that it was not adapted to: an honest estimate from the labels alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.config import BATCH, CHECKED_SLICES, LEAST_GAIN, LEAST_SLICES, STOPS, AdaptationConfig
from ssmsam.fewshot.episodes import AdaptationTask, AdaptationTasks, tally
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.ops import evenly_spaced
from ssmsam.progress import Progress, silent, stop_if_cancelled


@dataclass(frozen=True)
class Estimate:
    """Dice in [0, 1] of one label over held-out slices, before adaptation and after; ``slices`` were held out.

    ``share`` of the steps had been made when the mean over all labels was best: that is when to stop.
    """

    before: float
    after: float
    slices: int
    share: float = 1.0

    def as_json(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def cross_validated(
    decoder: TargetDecoder,
    tasks: AdaptationTasks,
    config: AdaptationConfig,
    *,
    folds: int,
    progress: Progress = silent,
) -> dict[str, Estimate]:
    """Label -> estimate, for the labels with enough slices. Each fold's slices are neither learned from nor context.

    Folds get a share of the steps, so that all of them together take as long as one adaptation. Without any step
    ``after`` is ``before``.
    """
    able = {label: views for label, views in tasks.items() if views[0].bank.shows.sum() >= LEAST_SLICES}
    if not able:
        return {}
    short = replace(config, steps=max(1, config.steps // folds), budget_s=config.budget_s / folds)
    before = {label: np.zeros(2) for label in able}
    after = {share: {label: np.zeros(2) for label in able} for share in STOPS}
    for fold in range(folds):
        held_out = {label: _held_out(views[0], fold, folds) for label, views in able.items()}
        _add(before, decoder, able, held_out)
        for share, decoder_then in _stages(decoder, able, short, held_out, progress) if config.steps else ():
            _add(after[share], decoder_then, able, held_out)
    after = after if config.steps else dict.fromkeys(STOPS, before)
    best = max(STOPS, key=lambda share: float(np.mean([_dice(tally) for tally in after[share].values()])))
    counts = {label: len(views[0].bank) for label, views in able.items()}
    return {
        label: Estimate(_dice(before[label]), _dice(after[best][label]), counts[label], share=best) for label in able
    }


def _stages(
    decoder: TargetDecoder,
    tasks: AdaptationTasks,
    config: AdaptationConfig,
    held_out: Mapping[str, Sequence[int]],
    progress: Progress,
) -> list[tuple[float, TargetDecoder]]:
    """The decoder at each of the stops; at those that the time did not suffice for, as it was in the end."""
    found: dict[float, TargetDecoder] = {}

    def watch(step: int, fitted: TargetDecoder) -> None:
        reached = [share for share in STOPS if max(1, round(config.steps * share)) == step]
        found.update(dict.fromkeys(reached, copy.deepcopy(fitted).eval()) if reached else {})

    last = fit(decoder, tasks, config, held_out=held_out, watch=watch, progress=progress).decoder
    return [(share, found.get(share, last)) for share in STOPS]


def _add(
    tally: dict[str, np.ndarray], decoder: TargetDecoder, tasks: AdaptationTasks, held_out: Mapping[str, Sequence[int]]
) -> None:
    for label, views in tasks.items():
        stop_if_cancelled()
        tally[label] += overlap(decoder, views[0], held_out[label])


def worth_it(estimates: Mapping[str, Estimate]) -> bool:
    """Whether adaptation helped clearly on the slices held out; without an estimate it is assumed to.

    Where labelled slices already say it all as prompts, adaptation gains nothing between them, and the decoder loses
    some of its sense of where the target ends.
    """
    gains = [one.after - one.before for one in estimates.values()]
    return not gains or float(np.mean(gains)) >= LEAST_GAIN


def _held_out(adaptation_task: AdaptationTask, fold: int, folds: int) -> tuple[int, ...]:
    """Every ``folds``-th slice of those that show the label, and of the others, in the order of the bank."""
    shows = np.flatnonzero(adaptation_task.bank.shows).tolist()
    others = np.flatnonzero(~adaptation_task.bank.shows).tolist()
    return tuple(sorted(shows[fold::folds] + others[fold::folds]))


@torch.inference_mode()
def overlap(decoder: TargetDecoder, adaptation_task: AdaptationTask, held_out: Sequence[int]) -> np.ndarray:
    """Twice the overlap and the sum of both areas, in cells, over slices whose context is only what is not held out:
    (2,)."""
    total = np.zeros(2)
    for number in held_out:
        query_batch = adaptation_task.query_batch([number], hidden=tuple(held_out))
        logits = decoder(query_batch.embedding, query_batch.context, features=query_batch.features).logits
        total += tally(logits > 0, query_batch.masks, query_batch.known)
    return total


def _dice(tally: np.ndarray) -> float:
    return float(tally[0] / tally[1]) if tally[1] else 1.0


def mean_estimate(card: Mapping[str, Any]) -> float | None:
    """The mean over labels of what a task's card estimates; None where nothing could be held out."""
    name = "after" if card.get("adapted") else "before"
    found = [one[name] for one in card.get("dice_estimate", {}).values()]
    return float(np.mean(found)) if found else None


@dataclass(frozen=True)
class SupportCheck:
    """Of the labelled slices of one label, each answered by the others: the Dice in [0, 1] over all cells of those that
    were queries, ``slices`` of them; the least ``presence`` where the target is and the greatest where it is not,
    ``absence``. None where nothing is known."""

    dice: float | None = None
    presence: float | None = None
    absence: float | None = None
    slices: int = 0


@dataclass(frozen=True, eq=False)
class HeldOutAnswers:
    """What a decoder answered on some labelled slices, by their ``numbers`` in the bank, each with only the others as
    context: ``logits`` (n, S, S) and ``presence`` (n,) in [0, 1]."""

    numbers: list[int]
    logits: torch.Tensor
    presence: np.ndarray


@torch.inference_mode()
def held_out_answers(decoder: TargetDecoder, adaptation_task: AdaptationTask) -> HeldOutAnswers | None:
    """None with fewer than two slices that show the target: then nothing is known."""
    count = len(adaptation_task.bank)
    if adaptation_task.bank.shows.sum() < 2:
        return None
    numbers, proposals = evenly_spaced(count, CHECKED_SLICES), []
    for start in range(0, len(numbers), BATCH):
        stop_if_cancelled()
        query_batch = adaptation_task.query_batch(numbers[start : start + BATCH])
        proposals.append(decoder(query_batch.embedding, query_batch.context, features=query_batch.features))
    presence = torch.cat([one.presence for one in proposals]).sigmoid().cpu().numpy()
    return HeldOutAnswers(numbers, torch.cat([one.logits for one in proposals]), presence)


def check_support(adaptation_task: AdaptationTask, answers: HeldOutAnswers | None) -> SupportCheck:
    """What the answers on held-out slices say."""
    if answers is None:
        return SupportCheck()
    there = adaptation_task.bank.shows[answers.numbers]
    # whether a mask is kept where the target is not, is for the volume head to say
    drawn = (answers.logits > 0) & torch.from_numpy(there).to(answers.logits.device)[:, None, None]
    overlap, total = tally(drawn, adaptation_task.masks[answers.numbers], adaptation_task.known[answers.numbers])
    presence = answers.presence
    return SupportCheck(
        dice=float(overlap / total) if total else None,
        presence=float(presence[there].min()) if there.any() else None,
        absence=float(presence[~there].max()) if not there.all() else None,
        slices=int(there.sum()),
    )


def banks_with_errors(tasks: AdaptationTasks, answers: Mapping[str, HeldOutAnswers | None]) -> dict[str, SupportBank]:
    """The bank of each label, with what was missed on slices that were held out."""
    banks = {label: views[0].bank for label, views in tasks.items()}
    known = {label: one for label, one in answers.items() if one is not None}
    return {**banks, **{k: banks[k].with_errors(one.numbers, one.logits.cpu().numpy()) for k, one in known.items()}}
