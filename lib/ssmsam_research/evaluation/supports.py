"""Which patients a few-shot task is shown: chosen by rule, never at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ssmsam.progress import Progress, silent
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.placement import evenly

KEPT_OPEN = 4
"""Support volumes that a process keeps in memory."""


@dataclass(frozen=True)
class SupportPool:
    """The cases that may be supports, and which of them hold which label, by name."""

    labelled_set: LabelledSet
    holders: Mapping[str, tuple[Case, ...]]

    @classmethod
    def open(cls, labelled_set: LabelledSet, progress: Progress = silent) -> SupportPool:
        """Reads the labels of all cases once."""
        holders: dict[str, list[Case]] = {}
        for number, case in enumerate(labelled_set.cases):
            progress("supports", number, len(labelled_set.cases))
            for value in np.unique(np.rint(read_volume(case.labels).array).astype(np.int32)):
                if value > 0:
                    holders.setdefault(labelled_set.label_name(int(value)), []).append(case)
        return cls(labelled_set, {name: tuple(cases) for name, cases in holders.items()})

    def groups(self, label: str, query: Case, *, supports: int, shots: int) -> list[tuple[Case, ...]]:
        """Up to ``supports`` groups of ``shots`` patients that hold the label, no patient twice, never the query.

        Spread evenly over the cases in the order of their names. Empty when not even one group can be made.
        """
        candidates = [case for case in self.holders.get(label, ()) if case.image != query.image]
        count = min(supports, len(candidates) // shots)
        places = evenly(len(candidates), count * shots) if count else []
        return [tuple(candidates[place] for place in places[group::count]) for group in range(count)]

    def truth(self, case: Case, label: str) -> tuple[Volume, np.ndarray]:
        """A support's image, and the label's mask (slices, rows, columns) bool."""
        volume, labels = _opened(case)
        masks = {name: mask for name, mask in self.labelled_set.targets(labels) if name == label}
        return volume, masks[label]


@lru_cache(maxsize=KEPT_OPEN)
def _opened(case: Case) -> tuple[Volume, np.ndarray]:
    volume, labels = case.read()
    return volume, labels.astype(np.int16)


def support_set(pool: LabelledSet, queries: LabelledSet, validation: Sequence[str]) -> LabelledSet:
    """The cases of ``pool`` that may be supports: not kept aside, and not queries themselves.

    When that leaves none, because every case is a query, all of them: then each is a support of the others.
    """
    asked = {case.image.resolve() for case in queries.cases}
    left = tuple(case for case in pool.cases if case.name not in validation and case.image.resolve() not in asked)
    return replace(pool, cases=left or pool.cases)
