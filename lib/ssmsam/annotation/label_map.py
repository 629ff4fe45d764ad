"""Annotations as one label map, the form in which viewers and stores exchange masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ssmsam.annotation.annotations import Annotations


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
