"""What the server remembers between two clicks, for each image, label and client."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ssmsam.cache import Cache
from ssmsam.interactive.propagation import Section
from ssmsam.interactive.request import ANONYMOUS
from ssmsam.interactive.segmenter import SliceAnswer, SliceMasks
from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.progress import FairLock


class SegmentationState:
    """Prompts and masks of one object, as last sent and as last answered.

    Hold :attr:`lock` while reading and changing: two requests for the same object come one after the other, those
    for different objects do not wait for each other.
    """

    def __init__(self) -> None:
        self.lock = FairLock()
        self.context = ""
        """Digest of the embeddings that all this was made from."""
        self.clear()

    def clear(self) -> None:
        """Forget everything, as for a new object."""
        self.prompts: dict[int, SlicePrompt] = {}
        """Per slice, as last sent."""
        self.logits: dict[int, torch.Tensor] = {}
        """Per slice with a positive click or a box: low-resolution logits (1, 1, S, S), fed back on the next click."""
        self.quality: dict[int, float] = {}
        """Per slice with an answer of its own: its predicted IoU."""
        self.masks = SliceMasks()
        """All slices of the last answer that are not empty, prompted and propagated."""
        self.sections: dict[str, Section] = {}
        """Propagated parts of the volume by what they were computed from."""

    @property
    def prompted(self) -> set[int]:
        """Slices whose mask comes from the user's prompts."""
        return set(self.prompts)

    def forget_slice(self, index: int) -> None:
        """Drop one slice's prompts and mask: its points were deleted."""
        self.prompts.pop(index, None)
        self.logits.pop(index, None)
        self.quality.pop(index, None)
        self.masks.pop(index, None)

    def remember_slice(self, index: int, prompt: SlicePrompt, answer: SliceAnswer) -> None:
        """Keep the answer to one slice's prompts."""
        self.forget_slice(index)
        self.prompts[index] = prompt
        self.quality[index] = answer.quality
        if answer.logits is not None:
            self.logits[index] = answer.logits.detach().to("cpu", torch.float32)
        if answer.mask.any():
            self.masks[index] = answer.mask

    def feedback(self, index: int, prompt: SlicePrompt) -> torch.Tensor | None:
        """The logits to feed back: those of this slice's last answer, if ``prompt`` only adds to its prompts.

        A point that was deleted or moved takes the feedback with it, else it would live on in the logits.
        """
        known = self.prompts.get(index)
        return self.logits.get(index) if known is not None and extends(prompt, known) else None

    def continues(self, slices: Mapping[int, SlicePrompt]) -> bool:
        """Whether prompts only add to the known ones: nothing deleted, nothing moved, no other object."""
        return all(index in slices and extends(slices[index], known) for index, known in self.prompts.items())


def extends(new: SlicePrompt, old: SlicePrompt) -> bool:
    """Whether ``new`` holds all of ``old`` and perhaps more."""
    return (
        _points(old.positive) <= _points(new.positive)
        and _points(old.negative) <= _points(new.negative)
        and old.box in (None, new.box)
        and set(old.strokes) <= set(new.strokes)
        and old.outline in ((), new.outline)
    )


def same(one: SlicePrompt, other: SlicePrompt) -> bool:
    """Whether two prompts say the same, in whatever order."""
    return extends(one, other) and extends(other, one)


def _points(xy: np.ndarray) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in np.reshape(xy, (-1, 2))}


class StateStore:
    """The states of the objects that were worked on last, at most ``capacity`` of them. Safe between threads.

    Client ids are no proof of identity (many viewers send the same one, or none), so the image is part of the key:
    nothing of one image ever reaches another.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._states: Cache[tuple[str, str, str], SegmentationState] = Cache(capacity)

    def open(self, image: str, label: str = "", client_id: str | None = None) -> SegmentationState:
        """The state of an object: the known one, or a new one in the place of the least recently used."""
        return self._states.recalled((str(image), str(label), client_id or ANONYMOUS), SegmentationState)

    def __len__(self) -> int:
        return len(self._states)
