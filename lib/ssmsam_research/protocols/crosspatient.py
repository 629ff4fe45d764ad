"""Protocol "crosspatient": an organ is annotated in other patients, and is to be found in this one.

(a) Known extent, as the literature does it: the first and the last slice of the organ in the query are given; its
extent is cut in three parts, and each part gets the support slice from the middle of the same part of the support's
organ. (b) Whole volume: k support slices, nothing known of the query. Dice is three-dimensional over the whole volume;
in (a) nothing is predicted outside the extent. Everything is repeated with several supports, and their mean taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ssmsam.progress import Progress, silent
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.protocols.episode import Episode
from ssmsam_research.protocols.fewshot_task import (
    Part,
    Support,
    Task,
    evenly,
    extent_of,
    in_middles,
    middles,
    same_direction,
    split,
)

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
    """The cases of ``pool`` that may be supports: not held out, and not queries themselves.

    When that leaves none, because every case is a query, all of them: then each is a support of the others.
    """
    asked = {case.image.resolve() for case in queries.cases}
    left = tuple(case for case in pool.cases if case.name not in validation and case.image.resolve() not in asked)
    return replace(pool, cases=left or pool.cases)


KNOWN_EXTENT, VOLUME = "known extent", "volume"


@dataclass(frozen=True)
class CrossPatientProtocol:
    """``shots`` support patients at a time, repeated with ``supports`` different groups of them.

    ``parts`` the extent is cut in for (a); ``slices`` are annotated in each support patient for (b).
    """

    shots: int = 1
    supports: int = 3
    parts: int = 3
    slices: tuple[int, ...] = (1, 3, 5, 10)
    name: ClassVar[str] = "crosspatient"

    @property
    def headline(self) -> str:
        """The setting whose mean is the result's ``mean_dice``."""
        return KNOWN_EXTENT

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def episodes(
        self, case: Case, volume: Volume, labels: np.ndarray, labelled_set: LabelledSet, pool: SupportPool
    ) -> Iterator[Episode]:
        """Every label of a query, with every group of supports; none for labels that too few supports hold."""
        for label, truth in labelled_set.targets(labels):
            for group in pool.groups(label, case, supports=self.supports, shots=self.shots):
                yield from self._settings(volume, truth, label, group, pool)

    def without_support(
        self, case: Case, labels: np.ndarray, labelled_set: LabelledSet, pool: SupportPool
    ) -> list[str]:
        """The labels of a query that cannot be run, because fewer than ``shots`` other patients hold them."""
        names = [label for label, _ in labelled_set.targets(labels)]
        return [name for name in names if not pool.groups(name, case, supports=1, shots=self.shots)]

    def _settings(
        self, volume: Volume, truth: np.ndarray, label: str, group: tuple[Case, ...], pool: SupportPool
    ) -> Iterator[Episode]:
        shown = [pool.truth(case, label) for case in group]
        notes = {"supports": [case.name for case in group]}
        scored = {VOLUME: np.ones(len(truth), dtype=bool)}
        task = known_extent(volume, extent_of(truth), shown, self.parts)
        yield Episode(label, KNOWN_EXTENT, task, truth, scored, {**notes, "k": self.parts})
        for k in self.slices:
            supports = tuple(Support.from_labels(image, mask, in_middles(mask, k)) for image, mask in shown)
            yield Episode(
                label, setting_name(k), Task(supports=supports, query=volume), truth, scored, {**notes, "k": k}
            )


def setting_name(k: int) -> str:
    return f"whole volume, {k} slice{'s' * (k > 1)}"


def known_extent(volume: Volume, extent: range, shown: list[tuple[Volume, np.ndarray]], parts: int) -> Task:
    """The task of (a). ``shown`` are the support images with the organ's masks (slices, rows, columns).

    Where a support was stored the other way round, its parts are taken the other way round.
    """
    supports, chosen = [], []
    for image, mask in shown:
        slices = middles(mask, parts)
        supports.append(Support.from_labels(image, mask, sorted(set(slices))))
        chosen.append(slices if same_direction(image, volume) else slices[::-1])
    cut = zip(split(extent, parts), zip(*chosen, strict=True), strict=True)
    return Task(
        supports=tuple(supports),
        query=volume,
        extent=extent,
        parts=tuple(Part(slices, tuple(matching)) for slices, matching in cut if slices),
    )
