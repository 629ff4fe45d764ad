"""Episodes: one target, some labelled slices to adapt to, and others to see how well that went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ssmsam.fewshot.adaptation import Taught
from ssmsam.fewshot.bank import Bank
from ssmsam.fewshot.lesson import Exercise, Lesson
from ssmsam.fewshot.support import NothingToLearn

LEAST_SUPPORT = 2
"""Slices of the support that must show the target, so that each can be asked for while another shows it."""


@dataclass(frozen=True, eq=False)
class Episode:
    """``views`` are one label's lessons, and ``query`` the numbers of the slices that adaptation never sees."""

    label: str
    views: Sequence[Lesson]
    query: tuple[int, ...]

    @property
    def taught(self) -> Taught:
        return {self.label: self.views}

    @property
    def held_out(self) -> dict[str, tuple[int, ...]]:
        return {self.label: self.query}

    def exercise(self, *, most: int) -> Exercise:
        """The query slices as they are, at most so many, each shown the support and no other query slice."""
        return self.views[0].exercise(self.query[:most], hidden=self.query)


def splits(bank: Bank, rng: np.random.Generator) -> tuple[int, ...] | None:
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


def episodes(taught: Taught, rng: np.random.Generator) -> Iterator[Episode]:
    """Endless: a label, then a split of its slices. Raises :class:`NothingToLearn` when no label can be split."""
    usable = [label for label, views in taught.items() if views[0].bank.shows.sum() > LEAST_SUPPORT]
    if not usable:
        raise NothingToLearn(
            f"meta-learning needs a label that is annotated on at least {LEAST_SUPPORT + 1} slices that show it: "
            "annotate more slices, or use the models as they are"
        )
    while True:
        label = usable[int(rng.integers(len(usable)))]
        query = splits(taught[label][0].bank, rng)
        if query is not None:
            yield Episode(label, taught[label], query)
