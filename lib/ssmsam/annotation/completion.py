"""Finishing a label on the whole volume, and taking that back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from ssmsam.annotation.annotations import Annotations, Update
from ssmsam.annotation.log import Served
from ssmsam.annotation.slice_state import SliceAnnotation, SliceKey, Source
from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import Plane


def complete(
    labels: Iterable[str], annotations: Annotations, served: Mapping[str, Served], *, client: str, when: str
) -> Update:
    """Declare labels finished as they are on screen: annotated slices as annotated, all others as last served.

    What was neither annotated nor served is empty then. Slices that were annotated before keep their annotation.
    """
    entries: dict[SliceKey, SliceAnnotation] = {}
    finished = frozenset(labels)
    for label in finished:
        shown = served.get(label)
        plane = Plane(shown.axis if shown else 0)
        for index, mask in enumerate(plane.stack(whole(label, annotations, shown))):
            key = SliceKey(label, plane.axis, index)
            known = annotations.slices.get(key)
            if known is None or known.known is not None:
                entries[key] = SliceAnnotation(PackedMask.of(mask), Source.COMPLETE, client, when)
    return Update(annotations.grid, entries, complete=finished, labels=finished, client=client, when=when)


def declared_whole(labels: Collection[str], annotations: Annotations) -> frozenset[SliceKey]:
    """Slices that count only because their label was declared finished."""
    return frozenset(
        key for key, entry in annotations.slices.items() if key.label in labels and entry.source is Source.COMPLETE
    )


def whole(label: str, annotations: Annotations, served: Served | None) -> np.ndarray:
    """A label's mask (slices, rows, columns) bool as it is on screen: truth where it is known, else what was served."""
    mask, weight = annotations.target(label)
    if served is not None:
        shown = np.zeros_like(mask)
        for index, part in served.slices.items():
            Plane(served.axis).stack(shown)[index] = part.array
        mask = np.where(weight > 0, mask, shown)
    return mask
