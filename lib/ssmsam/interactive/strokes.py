"""Scribbles and lassos: lines that are drawn on a slice, as prompts for a decoder that knows points, boxes and masks.

A point that says nothing new makes such a decoder worse. So a scribble is its middle point, its line in the mask
that is fed back, and one more point where the answer does not follow it. A lasso is drawn loosely: its inner part is
the mask to begin with, and the box round it a box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np
import torch
from scipy import ndimage
from skimage.draw import line, polygon2mask

from ssmsam.models.frame import CONFIDENCE, Frame, draw_mask
from ssmsam.models.prompt_decoder import SlicePrompt

_TOUCHED = 0.3
"""The share of a logit's area from which a line counts there. *Guess*: a line is thinner than the area."""


DISOBEYED = 0.1
"""The share of a scribble on the wrong side of the mask from which it gets one more point. *Guess*."""
WIDTH = 3.0
"""Pixels of a slice that a scribble is wide, in the mask that is fed back. *Guess*."""
SHRINK = 0.12
"""How far a lasso runs from what it means, as a share of the radius of a disc of its area. *Fitted on* 34 slices of
three training patients (two of chaos_t2_mr, one of sabs_ct), with lassos that were drawn loosely by chance: 0 to 0.3
were tried."""


def middle(xy: np.ndarray) -> np.ndarray:
    """The point (2,) in the middle of the way along a line (N, 2)."""
    steps = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    half = steps[-1] / 2
    return np.array([np.interp(half, steps, xy[:, 0]), np.interp(half, steps, xy[:, 1])])


def pixels_along(xy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels (M, 2) as (row, column) that a line (N, 2) of (x, y) runs through, in their order."""
    yx = np.rint(np.asarray(xy)[:, ::-1]).astype(int).clip(0, np.array(shape) - 1)
    pieces = [np.stack(line(*start, *end), axis=1) for start, end in pairwise(yx)]
    return np.concatenate([yx[:1], *(piece[1:] for piece in pieces)])


def with_more_points(prompt: SlicePrompt, mask: np.ndarray) -> SlicePrompt:
    """The prompt with one more point for each scribble that a mask (height, width) does not follow: in the middle of
    the longest part of it that is on the wrong side."""
    more: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for stroke in prompt.strokes:
        pixels = pixels_along(np.array(stroke.xy), mask.shape)
        wrong = mask[pixels[:, 0], pixels[:, 1]] != stroke.positive
        if wrong.mean() > DISOBEYED:
            first, last = max(_runs(wrong), key=lambda run: run[1] - run[0])
            more[stroke.positive].append(pixels[(first + last) // 2, ::-1].astype(float))
    if not any(more.values()):
        return prompt
    return replace(
        prompt,
        positive=np.concatenate([prompt.positive, np.reshape(more[True], (-1, 2))]),
        negative=np.concatenate([prompt.negative, np.reshape(more[False], (-1, 2))]),
    )


def with_lines(logits: torch.Tensor, prompt: SlicePrompt, frame: Frame) -> torch.Tensor:
    """Logits (1, 1, S, S) that are sure of the scribbles, to be fed back."""
    found = logits.clone()
    for stroke in prompt.strokes:
        off = np.ones((frame.height, frame.width), dtype=bool)
        off[tuple(pixels_along(np.array(stroke.xy), off.shape).T)] = False
        ribbon = ndimage.distance_transform_edt(off) <= WIDTH / 2
        drawn = draw_mask(ribbon, frame, logits.shape[-1], logits.device) > _TOUCHED
        found[drawn] = CONFIDENCE if stroke.positive else -CONFIDENCE
    return found


def lasso_mask(outline: tuple[tuple[float, float], ...], shape: tuple[int, int]) -> np.ndarray:
    """The pixels (height, width) bool whose centres a closed line of (x, y) holds."""
    inside: np.ndarray = polygon2mask(shape, np.array(outline)[:, ::-1])
    return inside


def inner_part(outline: tuple[tuple[float, float], ...], shape: tuple[int, int]) -> np.ndarray:
    """What a loosely drawn lasso surely means: (height, width) bool, never empty where the lasso holds a pixel."""
    inside = lasso_mask(outline, shape)
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    inner = depth > SHRINK * np.sqrt(inside.sum() / np.pi)
    return inner if inner.any() else inside


def _runs(wrong: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last index of each run of true values."""
    for value, group in groupby(range(len(wrong)), key=lambda index: bool(wrong[index])):
        if value:
            members = list(group)
            yield members[0], members[-1]
