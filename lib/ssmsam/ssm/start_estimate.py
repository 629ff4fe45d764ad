"""How far adaptation gets from a start, on slices that the start never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.adaptation import AdaptationConfig, fit
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.estimate import Estimate, overlap
from ssmsam.fewshot.lesson import Lesson, lessons
from ssmsam.fewshot.support import LabelledSlice, Support, checked
from ssmsam.progress import Progress, silent

LEAST_SLICES = 4
"""So many slices of a volume have to show a label before one of them is set aside."""

Aside = Mapping[str, tuple[int, ...]]
"""Label -> which of its slices are set aside, as lessons number them."""


def set_aside(support: Support) -> tuple[Support, Aside]:
    """The slices to train on, and which are not: of each label and volume every fourth that shows the label.

    Raises :class:`~ssmsam.fewshot.support.NothingToLearn`.
    """
    rest: dict[str, list[LabelledSlice]] = {}
    aside: dict[str, tuple[int, ...]] = {}
    for label, slices in checked(support).items():
        chosen: list[int] = []
        for volume in dict.fromkeys(one.volume for one in slices):
            showing = [n for n, one in enumerate(slices) if one.volume == volume and one.drawn.any()]
            if len(showing) >= LEAST_SLICES:
                chosen += showing[1::LEAST_SLICES]
        rest[label] = [one for n, one in enumerate(slices) if n not in chosen]
        if chosen:
            aside[label] = tuple(chosen)
    return rest, aside


def judged(
    decoder: TargetDecoder,
    support: Support,
    aside: Aside,
    embedder: Embedder,
    *,
    config: AdaptationConfig,
    progress: Progress = silent,
) -> dict[str, Estimate]:
    """Label -> Dice on what was set aside, from ``decoder`` as it is and after adapting it to all other slices."""

    def judging(_: str, done: int, total: int) -> None:
        progress("estimate", done, total)

    plain = replace(config, views=replace(config.views, views=0))
    taught = lessons(
        {label: support[label] for label in aside},
        embedder,
        decoder,
        config=plain.views,
        bank=plain.bank,
        seed=plain.seed,
        progress=judging,
    )
    fitted = fit(decoder, taught, plain, held_out=aside, progress=judging).decoder
    return {
        label: Estimate(
            before=_dice(decoder, views[0], aside[label]),
            after=_dice(fitted, views[0], aside[label]),
            slices=len(aside[label]),
        )
        for label, views in taught.items()
    }


def _dice(decoder: TargetDecoder, lesson: Lesson, held_out: Sequence[int]) -> float:
    """In [0, 1] over the held-out slices, in cells."""
    common, both = overlap(decoder, lesson, held_out)
    return float(common / both) if both else 1.0
