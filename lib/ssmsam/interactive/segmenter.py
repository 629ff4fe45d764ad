"""One slice: from prompts to a mask that keeps to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.interactive.click_constraints import (
    enforce_clicks,
    limit_to_box,
    satisfied,
    subtract,
    violates,
    without_clicked_pieces,
    without_fragments,
    without_islands,
)
from ssmsam.interactive.strokes import inner_part, with_lines, with_more_points
from ssmsam.models.frame import Frame, draw_mask, logits_to_pixels, mask_to_logits
from ssmsam.models.prompt_decoder import PromptDecoder, SlicePrompt
from ssmsam.ops import PackedMask


class SliceMasks(MutableMapping[int, np.ndarray]):
    """Slice number -> mask (height, width) bool, kept at one bit per pixel. Slices are in ascending order."""

    def __init__(self, masks: Mapping[int, np.ndarray] | None = None) -> None:
        self._packed: dict[int, PackedMask] = dict(masks._packed) if isinstance(masks, SliceMasks) else {}
        if not isinstance(masks, SliceMasks):
            self.update(masks or {})

    def __getitem__(self, index: int) -> np.ndarray:
        return self._packed[index].array

    def __setitem__(self, index: int, mask: np.ndarray) -> None:
        self._packed[int(index)] = PackedMask.of(mask)

    def __delitem__(self, index: int) -> None:
        del self._packed[index]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._packed))

    def __len__(self) -> int:
        return len(self._packed)


@dataclass(frozen=True, eq=False)
class SliceAnswer:
    """The mask of one slice and what is known about it."""

    mask: np.ndarray
    """(height, width) bool."""
    logits: torch.Tensor | None
    """(1, 1, S, S) of the chosen candidate, to feed back on the next click; None where clicks were subtracted."""
    quality: float
    """Predicted IoU of the chosen candidate in [0, 1]."""
    corrected: bool
    """Whether the decoder's mask had to be changed to keep to the clicks."""


def segment_slice(
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    index: int,
    prompt: SlicePrompt,
    *,
    previous: torch.Tensor | None = None,
    base: np.ndarray | None = None,
) -> SliceAnswer:
    """Segment slice ``index`` by its prompts. Every positive click ends up inside the mask, every negative one outside.

    ``previous`` are the logits of the last answer on this slice. Without them, ``base`` (height, width) is the mask
    that the user saw there, from propagation for instance: the prompt then corrects it; without either, the inner part
    of a lasso is where it begins. The prompt must not be empty.
    """
    embedding = embeddings.slice(index)
    frame = embeddings.frame
    if previous is None and prompt.outline and (base is None or not base.any()):
        base = inner_part(prompt.outline, (frame.height, frame.width))
    if previous is None and base is not None and base.any():
        previous = mask_to_logits(draw_mask(base, frame, decoder.logits_size))
    if previous is not None:
        previous = previous.to(embedding["image"].device)
    if previous is not None:
        previous = with_lines(previous, prompt, frame)
    for _ in range(2):
        candidates = decoder.predict(embedding, frame=frame, prompt=prompt, previous=previous)
        pixels = logits_to_pixels(candidates.logits, frame)
        chosen = choose(pixels, prompt)
        mask = limit_to_box(pixels[chosen] > 0, prompt)
        if (more := with_more_points(prompt, mask)) is prompt:
            break
        prompt, previous = more, with_lines(candidates.logits[None, chosen : chosen + 1], prompt, frame)
    corrected = violates(mask, prompt)
    if corrected:
        mask = enforce_clicks(mask, pixels[chosen], prompt)
    return SliceAnswer(
        mask=without_islands(mask, prompt),
        logits=candidates.logits[None, chosen : chosen + 1],
        quality=float(candidates.quality[chosen]),
        corrected=corrected,
    )


def uncertainty(logits: torch.Tensor, frame: Frame) -> np.ndarray:
    """Where a mask could as well be otherwise: (height, width) in [0, 1], 1 where the decoder gives a pixel the
    probability 0.5 and 0 where it is sure. ``logits`` are (1, 1, S, S)."""
    probable = logits_to_pixels(logits[0], frame)[0]
    unsure: np.ndarray = 1 - np.abs(np.tanh(probable / 2))
    return unsure


def choose(pixels: np.ndarray, prompt: SlicePrompt) -> int:
    """The candidate that agrees with most clicks; between equals the one that the decoder gave first.

    ``pixels`` (M, height, width) are the candidates' logits. A box counts as one more click, met by the share of the
    mask that is inside it, in tenths. An empty mask agrees with nothing.
    """

    def worth(number: int) -> float:
        mask = pixels[number] > 0
        if not mask.any():
            return -1.0
        inside = limit_to_box(mask, prompt).sum() / mask.sum()
        return satisfied(mask, prompt) + round(float(inside), 1)

    return max(range(len(pixels)), key=worth)


def correct_slice(
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    index: int,
    prompt: SlicePrompt,
    base: np.ndarray,
) -> SliceAnswer:
    """Take the negative clicks of ``prompt`` out of a mask (height, width) that was made without them.

    The decoder proposes what to leave out; only what it leaves out around the clicks is followed, so the mask never
    grows and never changes far from a click.
    """
    embedding = embeddings.slice(index)
    drawn = mask_to_logits(draw_mask(base, embeddings.frame, decoder.logits_size, embedding["image"].device))
    candidates = decoder.predict(embedding, frame=embeddings.frame, prompt=prompt, previous=drawn)
    pixels = logits_to_pixels(candidates.logits, embeddings.frame)
    chosen = choose(pixels, prompt)
    mask = subtract(without_clicked_pieces(base, prompt), pixels[chosen] > 0, prompt)
    mask = enforce_clicks(mask, pixels[chosen], replace(prompt, positive=np.zeros((0, 2))))
    return SliceAnswer(
        mask=without_fragments(mask, base),
        logits=None,
        quality=float(candidates.quality[chosen]),
        corrected=True,
    )
