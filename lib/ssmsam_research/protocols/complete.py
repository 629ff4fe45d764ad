"""Protocol "complete": some slices of a volume are annotated, the rest of that volume is to be found.

k slices of the organ are annotated, (a) its first, its last and equally spaced ones, so that its ends are known, or
(b) slices from 10 to 90 % of its extent, so that they are not. Dice is three-dimensional over the *other* slices of
the whole volume, those without the organ too; beside it, over the other slices within the organ's extent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.protocols.episode import Episode
from ssmsam_research.protocols.fewshot_task import Support, Task, extent_of, with_ends, without_ends

OTHER, IN_RANGE = "other slices", "other slices in range"
PLACEMENTS = {"ends given": with_ends, "ends unknown": without_ends}


@dataclass(frozen=True)
class CompleteProtocol:
    """How many slices are annotated, and where: "ends given" (a), "ends unknown" (b)."""

    slices: tuple[int, ...] = (3, 5, 9)
    placements: tuple[str, ...] = tuple(PLACEMENTS)
    name: ClassVar[str] = "complete"

    @property
    def headline(self) -> str:
        """The setting whose mean is the result's ``mean_dice``: five slices, or what is nearest to it."""
        return setting_name(self.placements[0], min(self.slices, key=lambda k: abs(k - 5)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def episodes(self, volume: Volume, labels: np.ndarray, labelled_set: LabelledSet) -> Iterator[Episode]:
        """Every label of a case, with every placement and number of slices."""
        for label, truth in labelled_set.targets(labels):
            for placement in self.placements:
                for k in self.slices:
                    yield _episode(volume, truth, label, placement, k)


def setting_name(placement: str, k: int) -> str:
    return f"{placement}, {k} slices"


def _episode(volume: Volume, truth: np.ndarray, label: str, placement: str, k: int) -> Episode:
    slices, extent = PLACEMENTS[placement](truth, k), extent_of(truth)
    task = Task(
        supports=(Support.from_labels(volume, truth, slices),),
        query=volume,
        extent=extent if placement == "ends given" else None,
    )
    other = np.ones(len(truth), dtype=bool)
    other[slices] = False
    within = np.zeros(len(truth), dtype=bool)
    within[extent.start : extent.stop] = True
    return Episode(
        label=label,
        setting=setting_name(placement, k),
        task=task,
        truth=truth,
        scored={OTHER: other, IN_RANGE: other & within},
        notes={"placement": placement, "k": k, "annotated": slices},
    )
