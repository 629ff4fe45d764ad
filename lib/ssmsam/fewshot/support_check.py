"""How well a decoder answers each labelled slice from the others: an honest estimate from the labels alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.lesson import Lesson, tally
from ssmsam.fewshot.proposals import BATCH
from ssmsam.progress import stop_if_cancelled

_MOST_SLICES = 16
"""Of more labelled slices so many are asked for, evenly spread: a guess, which bounds the time."""


@dataclass(frozen=True)
class SupportCheck:
    """Of the labelled slices of one label, each answered by the others: the Dice in [0, 1] over all cells of those that
    were asked for, ``slices`` of them; the least ``presence`` where the target is and the greatest where it is not,
    ``absence``. None where nothing is known."""

    dice: float | None = None
    presence: float | None = None
    absence: float | None = None
    slices: int = 0


@torch.inference_mode()
def check_support(decoder: TargetDecoder, lesson: Lesson) -> SupportCheck:
    """Needs two slices that show the target; with fewer, nothing is known."""
    shows = lesson.bank.shows
    if shows.sum() < 2:
        return SupportCheck()
    count = min(_MOST_SLICES, len(shows))
    asked = np.unique(np.linspace(0, len(shows) - 1, count).round().astype(int)).tolist()
    presence, total = np.zeros(len(asked)), np.zeros(2)
    for start in range(0, len(asked), BATCH):
        stop_if_cancelled()
        numbers = asked[start : start + BATCH]
        exercise = lesson.exercise(numbers)
        proposal = decoder(exercise.embedding, exercise.shown, reading=exercise.reading)
        presence[start : start + len(numbers)] = proposal.presence.sigmoid().cpu().numpy()
        # whether a mask is kept where the target is not, is for the volume head to say
        drawn = torch.from_numpy(shows[numbers]).to(proposal.logits.device)[:, None, None]
        total += tally((proposal.logits > 0) & drawn, exercise)
    there = shows[asked]
    return SupportCheck(
        dice=float(total[0] / total[1]) if total[1] else None,
        presence=float(presence[there].min()) if there.any() else None,
        absence=float(presence[~there].max()) if not there.all() else None,
        slices=int(there.sum()),
    )
