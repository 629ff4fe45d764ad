"""What every prompted mask decoder promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ssmsam.encoders.encoder import Embedding
from ssmsam.encoders.frame import Frame
from ssmsam.prompting.prompt import SlicePrompt


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

    @property
    def best(self) -> torch.Tensor:
        """(1, 1, S, S) logits of the most likely candidate."""
        return self.logits[None, :1]


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

        ``previous`` (1, 1, S, S) are the logits of the answer before the last click, fed back. At least one of
        a non-empty ``prompt``, ``previous`` and ``neighbour`` must be given, else ValueError.
        """
        ...
