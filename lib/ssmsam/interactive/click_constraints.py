"""Making sure that a mask does what the clicks say. Works on pixels, after the decoder had its say.

All masks are (height, width) bool; points are (x, y) with whole numbers at pixel centres.

The rules:

- A negative click inside the mask removes the whole connected piece it is in when that piece was not asked for: when
  positive clicks are in other pieces only, or, without positive clicks, when it is not the largest piece.
  Else it removes the pixels around it that the decoder likes no better than the click's own.
- A positive click outside the mask adds the pixels around it that the decoder likes at least as well as the click's.
- A correction reaches no further than a disc, never beyond half the way to a click of the other sign, and always
  changes at least the clicked pixel. So no correction undoes another click.
"""

from __future__ import annotations

import numpy as np

from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.ops import components

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
    """The mask with every violated click set right, by the rules above. ``logits`` (height, width) rank the pixels."""
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
