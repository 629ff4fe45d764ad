"""What the user is told after a submission."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ssmsam.annotation.annotations import Annotations, Update
from ssmsam.annotation.truth import SliceKey, Source

_AXES = {0: "", 1: "rows ", 2: "columns "}


def summarise(update: Update) -> str:
    """A few plain lines: which slices count as annotated, which are empty, what is not counted and why."""
    whole = [key for key, entry in update.entries.items() if entry.known is None and not entry.empty]
    empty = [key for key, entry in update.entries.items() if entry.known is None and entry.empty]
    partly = [key for key, entry in update.entries.items() if entry.known is not None]
    lines = [
        f"{title}: {_slices(keys)}"
        for title, keys in (
            ("counted as annotated", whole),
            ("counted as empty", empty),
            ("counted where painted", partly),
            ("not confirmed, still predictions", sorted(update.predicted)),
            ("withdrawn", sorted(update.withdrawn)),
        )
        if keys
    ]
    if not (update.entries or update.withdrawn or update.reopened):
        lines.insert(0, "no slice counts as annotated")
    if update.complete:
        lines.append(f"complete: {', '.join(sorted(update.complete))}")
    if update.reopened:
        lines.append(f"open again: {', '.join(sorted(update.reopened))}")
    return "\n".join((*lines, *update.notes))


@dataclass(frozen=True)
class FinishedLabel:
    """What a finished label holds."""

    slices: int
    """Slices that show it."""
    ml: float
    """Its volume in millilitres."""
    annotated: int
    """Those of its slices that a person checked one by one."""
    predicted: int
    """Those that were taken as they were on screen."""
    empty: int
    """Slices that count as without it."""


def finished_labels(annotations: Annotations, labels: Iterable[str]) -> dict[str, FinishedLabel]:
    """Label -> what it holds now, for the receipt of a finished volume."""
    voxel_ml = abs(float(np.linalg.det(annotations.grid.affine[:3, :3]))) / 1000
    found = {}
    for label in sorted(labels):
        known = [entry for key, entry in annotations.slices.items() if key.label == label]
        entries = [entry for entry in known if not entry.empty]
        taken = sum(entry.source is Source.COMPLETE for entry in entries)
        mask, _ = annotations.target(label)
        ml = round(int(mask.sum()) * voxel_ml, 1)
        found[label] = FinishedLabel(len(entries), ml, len(entries) - taken, taken, len(known) - len(entries))
    return found


def describe_finished(held: Mapping[str, FinishedLabel]) -> str:
    """As in: liver on 24 slices (1403.2 ml; 3 checked, 21 as proposed) and on none of 20 others."""
    return "; ".join(
        f"{label} on {one.slices} slice{'s' * (one.slices != 1)} ({one.ml:g} ml; {one.annotated} checked, "
        f"{one.predicted} as proposed) and on none of {one.empty} others"
        for label, one in held.items()
    )


def _slices(keys: Sequence[SliceKey]) -> str:
    """As in: 31, 58, 90 (liver); 5-12 (spleen)."""
    groups = groupby(sorted(keys), key=lambda key: (key.label, key.axis))
    return "; ".join(
        f"{_AXES[axis]}{_ranges([key.index for key in members])} ({label})" for (label, axis), members in groups
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, three and more neighbours as a range."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
