"""From which predicted presence on a slice counts as having the target."""

from __future__ import annotations

import numpy as np
import torch

from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.lesson import Lesson

DEFAULT = 0.5
"""Where no labelled slice can be judged by the others."""
ELSEWHERE = 0.5
"""In volumes of which no slice is labelled."""
MARGIN = 0.7
"""How much less sure than on the least sure labelled slice the decoder may be elsewhere, in logits."""
BOUNDS = (0.4, 0.97)


@torch.inference_mode()
def presence_threshold(decoder: TargetDecoder, lesson: Lesson) -> float:
    """The threshold for one label, from its labelled slices, each judged by the others.

    The decoder's presence orders slices well but is not calibrated for every organ. Slices that are known to be
    without the target put the threshold half-way between them and the others.
    """
    shows = lesson.bank.shows
    if shows.sum() < 2:
        return DEFAULT
    found = np.array([_judged(decoder, lesson, number) for number in range(len(lesson.bank))])
    low = float(found[shows].min())
    if shows.all():
        odds = low / max(1 - low, 1e-6) * np.exp(-MARGIN)
        return float(np.clip(odds / (1 + odds), *BOUNDS))
    return float(np.clip((low + float(found[~shows].max())) / 2, *BOUNDS))


def _judged(decoder: TargetDecoder, lesson: Lesson, number: int) -> float:
    exercise = lesson.exercise([number])
    return float(decoder(exercise.embedding, exercise.shown, reading=exercise.reading).presence.sigmoid()[0])
