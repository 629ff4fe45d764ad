"""The labelled slices that prompt everything else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings


class NothingToLearn(ValueError):
    """The labelled slices do not show the target. The message says what to annotate."""


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One slice of one volume on which a person drew one label.

    ``mask`` (height, width) bool may be empty: then the label is not on the slice. ``known`` (height, width) bool is
    where the mask is truth, None for the whole slice. Slices of all three planes may be mixed: the embeddings know
    their plane.
    """

    embeddings: VolumeEmbeddings
    index: int
    mask: np.ndarray
    known: np.ndarray | None = None
    image: str = ""
    """How the user calls the volume."""

    def __post_init__(self) -> None:
        frame = self.embeddings.frame
        shapes = {self.mask.shape} | ({self.known.shape} if self.known is not None else set())
        if shapes != {(frame.height, frame.width)}:
            raise ValueError(
                f"the mask of slice {self.index} has shape {self.mask.shape}, "
                f"but the slices of its volume have {(frame.height, frame.width)}"
            )
        if not 0 <= self.index < self.embeddings.count:
            raise ValueError(f"slice {self.index} is not in its volume, which has {self.embeddings.count}")

    @property
    def drawn(self) -> np.ndarray:
        """(height, width) bool: the mask where it is truth."""
        return self.mask if self.known is None else self.mask & self.known

    @property
    def volume(self) -> str:
        """Names volume, plane, recipe and encoder."""
        return self.embeddings.key.digest

    @property
    def body_centre(self) -> np.ndarray:
        """(2,): the centre of the body on the slice as (x, y) in input pixels."""
        return np.asarray(self.embeddings.body_centres[self.index])

    @property
    def position_mm(self) -> float:
        """Along the volume, as :meth:`~ssmsam.embeddings.embedder.VolumeEmbeddings.position_mm` counts."""
        return self.embeddings.position_mm(self.index)


Support = Mapping[str, Sequence[LabelledSlice]]
"""Labelled slices by label. One label's slices may lie in several volumes."""


def checked(support: Support) -> Support:
    """The same, sorted; raises :class:`NothingToLearn` for a label that no slice shows."""
    for label, slices in support.items():
        if not any(one.drawn.any() for one in slices):
            raise NothingToLearn(
                f"no annotated slice shows {label!r}: annotate at least one slice on which it can be seen"
            )
    if not support:
        raise NothingToLearn("no slice is annotated yet: annotate a few slices of the organ, then run again")
    order = {label: sorted(slices, key=lambda one: (one.volume, one.index)) for label, slices in support.items()}
    return dict(sorted(order.items()))


def digest(support: Support) -> str:
    """sha256 over labels, volumes, slices and masks: equal exactly when there is nothing new to learn."""
    sha = hashlib.sha256()
    for label, slices in sorted(support.items()):
        for one in sorted(slices, key=lambda each: (each.volume, each.index)):
            known = b"" if one.known is None else np.packbits(one.known).tobytes()
            sha.update(repr((label, one.volume, one.index, one.mask.shape)).encode())
            sha.update(np.packbits(one.mask).tobytes() + known)
    return sha.hexdigest()
