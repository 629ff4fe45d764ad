"""One slice: from prompts to a mask that keeps to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.interactive.strokes import inner_part, with_lines, with_more_points
from ssmsam.models.frame import Frame, draw_mask, logits_to_pixels, mask_to_logits
from ssmsam.models.prompt_decoder import PromptDecoder, SlicePrompt
from ssmsam.ops import PackedMask, components

Box = tuple[float, float, float, float]


# how far corrections reach, in pixels or as a share: all a *guess*

LEAST_RADIUS = 2.0
"""Everything this near to a violated click changes."""
REACH = 0.35
"""A correction's disc, as a share of the radius of a disc of the mask's area."""
BOX_MARGIN = 0.05
"""How far a mask may leave its box, as a share of the box's side."""
TINY_ISLAND = 0.1
"""Pieces smaller than this share of the mask's main piece are removed, unless they hold a positive click."""


def pixel_of(point: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int]:
    """The pixel (row, column) of a point (x, y), inside a slice of ``shape``."""
    x, y = np.rint(point).astype(int)
    return int(np.clip(y, 0, shape[0] - 1)), int(np.clip(x, 0, shape[1] - 1))


def satisfied(mask: np.ndarray, prompt: SlicePrompt) -> int:
    """How many clicks a mask agrees with."""
    inside = sum(bool(mask[pixel_of(point, mask.shape)]) for point in prompt.positive)
    return inside + sum(not mask[pixel_of(point, mask.shape)] for point in prompt.negative)


def violates(mask: np.ndarray, prompt: SlicePrompt) -> bool:
    """Whether a click is on the wrong side of the mask."""
    return satisfied(mask, prompt) < prompt.clicks


def limit_to_box(mask: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
    """The mask inside the prompt's box and a small margin; positive clicks outside widen the box."""
    if prompt.box is None:
        return mask
    corners = np.concatenate([np.reshape(prompt.box, (2, 2)), np.reshape(prompt.positive, (-1, 2))])
    margin = np.maximum(1, BOX_MARGIN * np.subtract(prompt.box[2:], prompt.box[:2]))
    x0, y0 = np.maximum(0, np.floor(corners.min(axis=0) - margin)).astype(int)
    x1, y1 = np.ceil(corners.max(axis=0) + margin).astype(int)
    limited = np.zeros_like(mask)
    limited[y0 : y1 + 1, x0 : x1 + 1] = mask[y0 : y1 + 1, x0 : x1 + 1]
    return limited


def enforce_clicks(mask: np.ndarray, logits: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
    """The mask with every violated click set right. ``logits`` (height, width) rank the pixels. The rules:

    - A negative click inside the mask removes the whole connected piece it is in when that piece was not asked for:
      when positive clicks are in other pieces only, or, without positive clicks, when it is not the largest piece. Else
      it removes the pixels around it that the decoder likes no better than the click's own.
    - A positive click outside the mask adds the pixels around it that the decoder likes at least as well as the
      click's.
    - A correction reaches no further than a disc, never beyond half the way to a click of the other sign, and always
      changes at least the clicked pixel. So no correction undoes another click.
    """
    mask = without_clicked_pieces(mask, prompt)
    radius = max(LEAST_RADIUS + 2, REACH * np.sqrt(mask.sum() / np.pi))
    for click in prompt.negative:
        pixel = pixel_of(click, mask.shape)
        if mask[pixel]:
            like = mask & (logits <= logits[pixel])
            mask &= ~_reached(like, mask, click, prompt.positive, radius)
    for click in prompt.positive:
        pixel = pixel_of(click, mask.shape)
        if not mask[pixel]:
            like = ~mask & (logits >= logits[pixel])
            mask |= _reached(like, ~mask, click, prompt.negative, radius)
    return mask


def without_clicked_pieces(mask: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
    """The mask without the pieces that a negative click is in and that were not asked for."""
    labels, areas = components(mask)
    wanted = {int(labels[pixel_of(point, mask.shape)]) for point in prompt.positive} - {0}
    wanted = wanted or {int(areas.argmax())}
    refused = {int(labels[pixel_of(point, mask.shape)]) for point in prompt.negative} - {0}
    return mask & ~np.isin(labels, sorted(refused - wanted))


def _reached(like: np.ndarray, near: np.ndarray, click: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """The pixels that a correction at ``click`` changes: ``like`` inside the disc, ``near`` right beside the click."""
    yx = np.indices(like.shape)
    distance = np.hypot(yx[1] - round(float(click[0])), yx[0] - round(float(click[1])))
    allowed = np.ones_like(like)
    for other in others:
        allowed &= distance < np.hypot(yx[1] - round(float(other[0])), yx[0] - round(float(other[1])))
    pixel = pixel_of(click, like.shape)
    region = allowed & ((like & (distance <= radius)) | (near & (distance <= LEAST_RADIUS)))
    region[pixel] = True
    return _piece(region, pixel)


def without_islands(mask: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
    """The mask without its tiny pieces. Those that hold a positive click always stay."""
    labels, areas = components(mask)
    if len(areas) < 3:
        return mask
    clicked = {int(labels[pixel_of(point, mask.shape)]) for point in prompt.positive} - {0}
    main = max(areas[sorted(clicked)]) if clicked else areas.max()
    keep = areas >= TINY_ISLAND * main
    keep[sorted(clicked)] = True
    keep[0] = False
    return keep[labels]


def without_fragments(mask: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The mask, cut out of ``base``, without fragments that are a tiny part of the piece they were cut from."""
    pieces, areas = components(base)
    fragments, sizes = components(mask)
    keep = np.zeros(len(sizes), dtype=bool)
    for number in range(1, len(sizes)):
        inside = fragments == number
        keep[number] = sizes[number] >= TINY_ISLAND * areas[pieces[inside][0]]
    return keep[fragments]


def subtract(base: np.ndarray, proposal: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
    """``base`` without what ``proposal`` leaves out around the negative clicks, and nothing else.

    A proposal that would take away more than half of the base was not understood, and is not followed.
    """
    left_out, areas = components(base & ~proposal, corners=False)
    if len(areas) < 2:
        return base
    clicked = {int(left_out[pixel_of(point, base.shape)]) for point in prompt.negative} - {0}
    removed = np.isin(left_out, sorted(clicked))
    return base if removed.sum() > base.sum() / 2 else base & ~removed


def _piece(mask: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    """The connected piece of a mask that holds a pixel."""
    labels, _ = components(mask)
    return np.asarray(labels == labels[pixel])


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
    of a lasso is where it begins, else what the box or the first click says alone: decoders learned to correct, and of
    many clicks at once they make less than of one after the other. The prompt must not be empty.
    """
    embedding = embeddings.slice(index)
    frame = embeddings.frame
    if previous is None and prompt.outline and (base is None or not base.any()):
        base = inner_part(prompt.outline, (frame.height, frame.width))
    if previous is None and base is not None and base.any():
        previous = mask_to_logits(draw_mask(base, frame, decoder.logits_size))
    if previous is None and (first := _beginning(prompt)) is not None:
        candidates = decoder.predict(embedding, frame=frame, prompt=first)
        chosen = choose(logits_to_pixels(candidates.logits, frame), first)
        previous = candidates.logits[None, chosen : chosen + 1]
    if previous is not None:
        previous = with_lines(previous.to(embedding["image"].device), prompt, frame)
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


def _beginning(prompt: SlicePrompt) -> SlicePrompt | None:
    """The box alone, or the first positive click; None where there is nothing else."""
    if prompt.clicks + (prompt.box is not None) == 1:
        return None
    return SlicePrompt(box=prompt.box) if prompt.box else SlicePrompt(positive=prompt.positive[:1])


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
