"""How well registrations carry the masks of one patient to another, and what they cost: ours beside libraries."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssmsam.registration.register import CoarseVolume, indices, places_of, sampled
from ssmsam.report import installed_versions, summarise
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Grid
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.methods.registration import METHODS, PACKAGES, Method, available
from ssmsam_research.metrics import dice, summarise_labels
from ssmsam_research.run import Run

Pair = tuple[LabelledSet, Case, Case]
"""A set, and of it the fixed and the moving case."""


def pairs_of(cases: Sequence[Case], count: int) -> list[tuple[Case, Case]]:
    """(fixed, moving): so many cases evenly spread over a set, each with the one half the set further on. No chance.

    Raises ValueError for fewer than two cases.
    """
    if len(cases) < 2:
        raise ValueError(f"a pair needs two cases, got {len(cases)}")
    count = min(count, len(cases))
    firsts = [number * len(cases) // count for number in range(count)]
    return [(cases[first], cases[(first + len(cases) // 2) % len(cases)]) for first in firsts]


@dataclass(frozen=True)
class RegistrationRun(Run[Pair]):
    """Registers pairs of cases of every set by every method that is installed, all on the same cells."""

    sets: tuple[LabelledSet, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    pairs: int = 6
    unit = "pairs"

    @property
    def left_out(self) -> dict[str, str]:
        """The methods that cannot be run here, and why."""
        return {name: why for name in self.methods if (why := available(name))}

    @property
    def identity(self) -> dict[str, Any]:
        return {"sets": [one.manifest()["sha256"] for one in self.sets], "packages": installed_versions(PACKAGES)}

    def units(self) -> Sequence[Pair]:
        return [(one, *pair) for one in self.sets for pair in pairs_of(one.cases, self.pairs)]

    def measure(self, unit: Pair, finished: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        torch.set_num_threads(self.threads)
        lacking = [name for name in self._installed if piece(unit, name) not in finished]
        for record in measured(*unit, lacking):
            yield piece(unit, record["method"]), record

    def result(self, pieces: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        records = [pieces[piece(pair, name)] for pair in self.units() for name in self._installed]
        return self.record(
            protocol="registration",
            method=", ".join(self._installed),
            settings={"pairs": self.pairs, "packages": installed_versions(PACKAGES)},
            data={one.name: one.manifest() for one in self.sets},
            weights={},
            methods={name: summary(records, name) for name in self._installed},
            left_out=self.left_out,
            per_pair=records,
        )

    @property
    def _installed(self) -> list[str]:
        left_out = self.left_out
        return [name for name in self.methods if name not in left_out]


def piece(pair: Pair, method: str) -> str:
    """The name in the log of one method on one pair."""
    return f"{pair[1].name} {pair[2].name} {method}"


def measured(one: LabelledSet, fixed: Case, moving: Case, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A record of each method: Dice of every label that both cases hold, and processor seconds."""
    if not methods:
        return
    (here, truth), (there, labels) = fixed.read(), moving.read()
    coarse = CoarseVolume.of(there, recipe_for(there).scale(there))
    cells = CoarseVolume.of(here, recipe_for(here).scale(here), cell_mm=coarse.cell_mm)
    held = {label for label, _ in one.targets(labels)}
    masks = {label: mask for label, mask in one.targets(truth) if label in held}
    for name in methods:
        places, seconds = _timed(METHODS[name], cells, coarse)
        carried = carried_labels(labels, there.grid, coarse.grid, places, cells.grid, here.grid)
        found = dict(one.targets(carried))
        scores = {label: round(dice(found.get(label, np.zeros_like(mask)), mask), 3) for label, mask in masks.items()}
        pair = {"set": one.name, "fixed": fixed.name, "moving": moving.name}
        yield {"method": name, **pair, "seconds": round(seconds, 3), "dice": scores}


def _timed(method: Method, fixed: CoarseVolume, moving: CoarseVolume) -> tuple[torch.Tensor, float]:
    began = time.process_time()
    places = method(fixed, moving)
    return places, time.process_time() - began


def carried_labels(
    labels: np.ndarray, grid: Grid, coarse: Grid, places: torch.Tensor, cells: Grid, wanted: Grid
) -> np.ndarray:
    """``labels`` on ``grid`` of the moving case at every voxel of ``wanted``, the nearest voxel's, 0 outside.

    ``places`` (3, D, H, W) lie on ``cells`` and are indices (slice, row, column) of ``coarse``.
    """
    first, carried = indices(Grid((1, *wanted.shape[1:]), wanted.affine)), np.zeros(wanted.shape, labels.dtype)
    for index in range(wanted.shape[0]):  # slab by slab, for memory
        here = cells.to_ijk(wanted.to_lps(first + np.array([0, 0, index])))
        there = sampled(places, places_of(here, (1, *wanted.shape[1:]))).reshape(3, -1).numpy()[::-1].T
        ijk = grid.to_ijk(coarse.to_lps(there))
        known = grid.contains(ijk)
        i, j, k = np.rint(ijk[known]).astype(int).T
        carried[index].reshape(-1)[known] = labels[k, j, i]
    return carried


def summary(records: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """For each set the mean over labels of means over pairs, each label's, and seconds; the mean over sets."""
    sets: dict[str, Any] = {}
    mine = [record for record in records if record["method"] == method]
    for name in dict.fromkeys(record["set"] for record in mine):
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        of_set = [record for record in mine if record["set"] == name]
        for record in of_set:
            for label, score in record["dice"].items():
                scores[label][f"{record['fixed']} {record['moving']}"] = score
        sets[name] = {
            "dice": summarise_labels(scores).as_json(),
            "per_label": {label: summarise(found.values()).as_json() for label, found in scores.items()},
            "seconds": round(float(np.mean([record["seconds"] for record in of_set])), 2),
        }
    over = {what: [one[what]["mean"] if what == "dice" else one[what] for one in sets.values()]
            for what in ("dice", "seconds")}  # fmt: skip
    return {"sets": sets, "over_sets": {what: round(float(np.mean(values)), 2) for what, values in over.items()}}
