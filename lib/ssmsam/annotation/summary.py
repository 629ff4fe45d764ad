"""What the user is told after a submission."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ssmsam.annotation.annotations import Update
from ssmsam.annotation.truth import SliceKey

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
