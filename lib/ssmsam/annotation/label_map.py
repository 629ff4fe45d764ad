"""A label file that somebody made elsewhere, as annotations: every slice of every label that it shows is truth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ssmsam.annotation.annotations import Annotations, Update
from ssmsam.annotation.interpretation import Submission, named_values
from ssmsam.annotation.slice_state import InvalidSubmission, SliceAnnotation, SliceKey, Source
from ssmsam.ops import PackedMask
from ssmsam.volume.volume import Grid, Volume


def label_map(
    annotations: Annotations, *, order: Sequence[str] = (), only: Collection[str] | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """All annotated masks as one array (slices, rows, columns), and which value means which label.

    Labels that have an annotated slice get the values 1 to N, first those named in ``order``, then the others by
    name; ``only`` leaves out all others. uint8, or uint16 for more than 255 labels. Where two labels were drawn on the
    same voxel, the later revision counts; within one, the higher value. Zero is background only on annotated slices.
    """
    named = {key.label for key in annotations.slices if only is None or key.label in only}
    labels = [*(name for name in order if name in named), *sorted(named - set(order))]
    values = {name: value for value, name in enumerate(labels, start=1)}
    array = np.zeros(annotations.grid.shape, np.uint8 if len(values) < 256 else np.uint16)
    for revision in annotations.revisions:
        for key, entry in sorted(revision.entries.items(), key=lambda item: values.get(item[0].label, 0)):
            if key.label in values and annotations.slices.get(key) is entry:
                area, value = key.plane.stack(array)[key.index], values[key.label]
                known = entry.weight > 0
                area[known & ~entry.mask.array & (area == value)] = 0
                area[known & entry.mask.array] = value
    return array, values


MOST_LABELS = 255
"""A file with more values is an image rather than a label; label files hold 8 bits."""


def whole_label(mask: Volume, grid: Grid, label_info: Any, names: Sequence[str]) -> tuple[Update, dict[str, int]]:
    """What a mask (slices, rows, columns) says, and which of its values is which label.

    ``label_info`` names the values, as in submissions; else ``names`` do, from 1, if there are enough; else the labels
    are ``label_1``, ``label_2`` and so on. Labels without a voxel are left out. Raises InvalidSubmission.
    """
    if not mask.grid.matches(grid):
        raise InvalidSubmission(
            f"it is on another grid (shape {mask.shape}, the image {grid.shape}, or another place or direction): "
            "export it with the image as the reference geometry"
        )
    submission = Submission(mask)
    found = sorted(submission.values - {0})
    if not found:
        raise InvalidSubmission("it has no voxel of any label: draw something, or remove the file")
    odd = submission.odd_value
    if odd is not None or len(found) > MOST_LABELS:
        what = f"the value {odd:.6g}" if odd is not None else f"{len(found)} different values"
        raise InvalidSubmission(f"it has {what}, as no label map has: export it as a label map")
    if label_info:
        known = named_values(label_info, fallback=(), known=names, values=found)
        if unnamed := [value for value in found if value not in known.values()]:
            raise InvalidSubmission(f"its label_info does not name the value {unnamed[0]:g}: add it there")
    else:
        enough = found[-1] <= len(names)
        known = {names[int(value) - 1] if enough else f"label_{value:g}": int(value) for value in found}
    values = {name: value for name, value in known.items() if value in found}
    entries = {
        SliceKey(name, 0, index): SliceAnnotation(PackedMask.of(part), Source.COMPLETE, when=submission.when)
        for name, value in values.items()
        for index, part in enumerate(np.asarray(submission.mask_of(value)))
    }
    labels = frozenset(values)
    note = f"read from a label file that was brought along: {', '.join(f'{name} = {n}' for name, n in values.items())}"
    return Update(grid, entries, complete=labels, labels=labels, when=submission.when, notes=(note,)), values
