"""The support set: the annotated slices that few-shot methods learn from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ssmsam.annotation.annotations import Annotations
from ssmsam.annotation.slice_state import SliceAnnotation, SliceKey
from ssmsam.volume.geometry import Grid, Plane


@dataclass(frozen=True)
class SupportSlice:
    """One annotated slice of one label."""

    image: str
    key: SliceKey
    annotation: SliceAnnotation
    grid: Grid = field(compare=False)
    """Of its image, when it was annotated."""

    @property
    def label(self) -> str:
        return self.key.label

    @property
    def plane(self) -> Plane:
        return self.key.plane

    @property
    def index(self) -> int:
        return self.key.index

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool."""
        return self.annotation.mask.array


@dataclass(frozen=True)
class SupportSet:
    """Annotated slices of one or more images, sorted by image, label, axis and slice."""

    slices: tuple[SupportSlice, ...] = ()

    @classmethod
    def of(cls, annotations: Mapping[str, Annotations]) -> SupportSet:
        """Every annotated slice of the images: image id -> what is known of it."""
        return cls(
            tuple(
                SupportSlice(image, key, entry, known.grid)
                for image, known in sorted(annotations.items())
                for key, entry in known.slices.items()
            )
        )

    def only(
        self, *, label: str | None = None, images: Collection[str] | None = None, nonempty: bool = False
    ) -> SupportSet:
        """The slices of a label, of some images, and with ``nonempty`` those whose mask is not empty."""
        return SupportSet(
            tuple(
                item
                for item in self.slices
                if (label is None or item.label == label)
                and (images is None or item.image in images)
                and not (nonempty and item.annotation.empty)
            )
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({item.label for item in self.slices}))

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(sorted({item.image for item in self.slices}))

    def __iter__(self) -> Iterator[SupportSlice]:
        return iter(self.slices)

    def __len__(self) -> int:
        return len(self.slices)
