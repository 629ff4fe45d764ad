"""Comparing what was submitted with what the server had sent: which slices are a person's work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ssmsam.annotation.annotations import Annotations
from ssmsam.annotation.records import Served
from ssmsam.annotation.truth import PackedMask, SliceKey, Source
from ssmsam.imaging.plane import Plane


def on_screen(
    label: str, client: str, plane: Plane, served: Served | None, annotations: Annotations
) -> tuple[dict[int, PackedMask], frozenset[int]]:
    """What a client has on screen of a label, by slice, as far as it is known, empty slices too; and on which of these
    slices that is an annotation, not a prediction."""
    before = dict(served.slices) if served is not None and served.axis == plane.axis else {}
    confirmed = set()
    for index, entry in annotations.annotated(label, plane=plane).items():
        # the client sees its own annotation unless something was served later
        own = served is None or index not in before or (entry.client == client and entry.when >= served.when)
        if entry.known is None and (own or before[index] == entry.mask):
            before[index] = entry.mask
            confirmed.add(index)
    return before, frozenset(confirmed)


@dataclass(frozen=True, eq=False)
class Evidence:
    """One label of a submission, slice by slice along the plane of work, beside what had been there before."""

    label: str
    axis: int
    drawn: Mapping[int, PackedMask]
    """The submitted slices that are not empty."""
    before: Mapping[int, PackedMask]
    """What the client had on screen per slice, as far as it is known; empty slices too."""
    confirmed: frozenset[int]
    """Slices whose mask in ``before`` is this client's own annotation, not a prediction."""
    prompted: frozenset[int]
    served: bool
    """Whether the label was ever served on this image."""

    @classmethod
    def of(
        cls,
        mask: np.ndarray,
        label: str,
        client: str,
        plane: Plane,
        served: Served | None,
        annotations: Annotations,
    ) -> Evidence:
        """Of a submitted mask (slices, rows, columns) bool of one label."""
        stack = plane.stack(mask)
        drawn = {int(index): PackedMask.of(stack[index]) for index in np.flatnonzero(stack.any(axis=(1, 2)))}
        before, confirmed = on_screen(label, client, plane, served, annotations)
        prompted = served.prompted if served is not None and served.axis == plane.axis else frozenset()
        return cls(label, plane.axis, drawn, before, confirmed, prompted, served is not None)

    def human(self) -> Iterator[tuple[int, Source]]:
        """Slices that a person worked on: clicked, changed, or drew where nothing had been served."""
        for index, mask in self.drawn.items():
            if index in self.prompted and mask == self.before.get(index):
                yield index, Source.PROMPTED
            elif mask != self.before.get(index):
                yield index, Source.DELTA if self.served else Source.NONEMPTY
        if self._descends:
            yield from ((index, Source.DELTA) for index in self._erased)

    def is_prediction(self, index: int) -> bool:
        """Whether the submitted slice is what was served, unchanged and unconfirmed."""
        mask = self.drawn.get(index)
        unseen = index not in self.prompted and index not in self.confirmed
        return mask is not None and unseen and mask == self.before.get(index)

    def predicted(self) -> set[SliceKey]:
        """Slices that hold a prediction still."""
        return {SliceKey(self.label, self.axis, index) for index in self.drawn if self.is_prediction(index)}

    def erased_without_proof(self) -> list[int]:
        """Slices where a mask is gone and nothing shows that somebody erased it."""
        return [] if self._descends else self._erased

    @property
    def _erased(self) -> list[int]:
        return sorted(index for index, mask in self.before.items() if not mask.empty and index not in self.drawn)

    @property
    def _descends(self) -> bool:
        """Whether the submission was made from what had been on screen: some slice of it is still there, unchanged.

        Without that, the user perhaps began afresh, and the slices that are missing were never looked at.
        """
        return any(mask == self.before.get(index) for index, mask in self.drawn.items())
