"""Protocol "crosspatient": an organ is annotated in other patients, and is to be found in this one.

(a) Known extent, as the literature does it: the first and the last slice of the organ in the query are given; its
extent is cut in three parts, and each part gets the support slice from the middle of the same part of the support's
organ. (b) Whole volume: k support slices, nothing known of the query. Dice is three-dimensional over the whole volume;
in (a) nothing is predicted outside the extent. Everything is repeated with several supports, and their mean taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.episode import Episode
from ssmsam_research.evaluation.fewshot import Part, Support, Task
from ssmsam_research.evaluation.placement import extent_of, in_middles, middles, same_direction, split
from ssmsam_research.evaluation.supports import SupportPool

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
