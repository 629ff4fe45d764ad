"""What every prompted mask decoder promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame


def _no_points() -> np.ndarray:
    return np.zeros((0, 2))


@dataclass(frozen=True)
class Stroke:
    """A line that was drawn on a slice: (x, y) in its pixels, inside the target or, where not ``positive``, outside."""

    xy: tuple[tuple[float, float], ...]
    positive: bool = True


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """Clicks and a box on one slice, in pixels of that slice, (x, y) with whole numbers at pixel centres.

    ``positive`` (N, 2) lie inside the target, ``negative`` (M, 2) outside it, in the order in which they were set.
    ``box`` is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1, both ends inside the box.
    ``strokes`` are scribbles, each of which has a point among the clicks already; ``outline`` is a line drawn loosely
    round the target, whose box is ``box`` where there is no other. Decoders do not look at these two.
    """

    positive: np.ndarray = field(default_factory=_no_points)
    negative: np.ndarray = field(default_factory=_no_points)
    box: tuple[float, float, float, float] | None = None
    strokes: tuple[Stroke, ...] = ()
    outline: tuple[tuple[float, float], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing says where the target is."""
        return len(self.positive) == 0 and self.box is None

    @property
    def points(self) -> np.ndarray:
        """All clicks and the corners of the box: (N, 2)."""
        corners = np.zeros((0, 2)) if self.box is None else np.reshape(self.box, (2, 2))
        return np.concatenate([np.reshape(one, (-1, 2)) for one in (self.positive, self.negative, corners)])

    @property
    def clicks(self) -> int:
        return len(self.positive) + len(self.negative)


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A slice of the same volume whose mask is known, as a prompt for the slice being segmented."""

    embedding: Embedding
    """Of the neighbour, batch of 1."""
    mask: torch.Tensor
    """(1, 1, S, S) in [0, 1], drawn in the encoder's input frame at the decoder's ``logits_size``."""
    distance_mm: float
    """From the neighbour to the slice being segmented, always positive."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Masks that may be meant, the most likely first.

    ``logits`` (M, S, S) cover the encoder's whole input; ``quality`` (M,) is the predicted IoU in [0, 1];
    ``presence`` is the predicted probability that the target is on this slice at all.
    """

    logits: torch.Tensor
    quality: torch.Tensor
    presence: float


class PromptDecoder(Protocol):
    """Embedding of one slice + prompts -> candidate masks. Never sees pixels, so it costs milliseconds."""

    logits_size: int
    """Side S of the square low-resolution logits."""
    least_likeness: float
    """Cosine between the target embeddings of a propagated mask and of its seed below which it is something else.
    0 where it was not calibrated: then it stops nothing."""

    def predict(
        self,
        embedding: Embedding,
        *,
        frame: Frame,
        prompt: SlicePrompt | None = None,
        previous: torch.Tensor | None = None,
        neighbour: Neighbour | None = None,
    ) -> Candidates:
        """Segment one slice.

        Args:
            embedding: Of the slice, a batch of 1.
            frame: Where the slice lies in the encoder's input.
            prompt: Clicks and a box in pixels of the slice, (x, y) = (column, row).
            previous: (1, 1, S, S) logits of the answer before the last click.
            neighbour: A slice of the same volume whose mask is known.

        Returns:
            Candidates, the most likely first.

        Raises:
            ValueError: None of a non-empty ``prompt``, ``previous`` and ``neighbour`` is given.
        """
        ...
