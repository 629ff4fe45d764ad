"""Simulated users for training: where they click first, where they correct, how they draw boxes."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from ssmsam.models.prompt_small import LOGITS_STRIDE, PointKind


def to_input(xy: np.ndarray) -> np.ndarray:
    """Positions on the grid of logits -> input pixels."""
    return (np.asarray(xy, dtype=np.float64) + 0.5) * LOGITS_STRIDE - 0.5


def click_inside(area: np.ndarray, rng: np.random.Generator, *, centred: float = 0.5) -> np.ndarray | None:
    """A position (x, y) on the grid of logits in a boolean area, at its innermost pixel with chance ``centred``."""
    if not area.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(area, 1))[1:-1, 1:-1]
    if rng.random() < centred:
        y, x = np.unravel_index(depth.argmax(), depth.shape)
    else:
        ys, xs = np.nonzero(depth > rng.uniform(0, 0.6) * depth.max())
        pick = rng.integers(len(xs))
        y, x = ys[pick], xs[pick]
    return np.array([x, y], dtype=np.float64) + rng.uniform(-0.4, 0.4, 2)


def draw_box(area: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A box around the area as a hurried user draws it: (2, 2) corners on the grid of logits."""
    y, x = np.nonzero(area)
    size = max(np.ptp(x), np.ptp(y)) + 1
    slack = rng.normal(0.02 * size, 0.05 * size + 0.5, 4).clip(-0.1 * size, 0.2 * size)
    corners = [[x.min() - slack[0], y.min() - slack[1]], [x.max() + slack[2], y.max() + slack[3]]]
    return np.clip(corners, 0, max(area.shape) - 1)


def correction(truth: np.ndarray, answer: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, PointKind] | None:
    """A click on the larger kind of error between two boolean masks, None when they are equal."""
    missed, extra = truth & ~answer, answer & ~truth
    kind, area = (PointKind.POSITIVE, missed) if missed.sum() >= extra.sum() else (PointKind.NEGATIVE, extra)
    parts, count = ndimage.label(area)
    if not count:
        return None
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    position = click_inside(parts == largest, rng, centred=0.6)
    return None if position is None else (position, kind)


def neighbouring(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the slice beside a target (S, S) might hold of it: moved, larger or smaller, bent. Never empty."""
    y, x = np.nonzero(truth)
    size = np.sqrt(len(x))
    bend = ndimage.gaussian_filter(rng.standard_normal((2, *truth.shape)), (0, 0.3 * size + 2, 0.3 * size + 2))
    bend *= rng.uniform(0, 0.12) * size / max(bend.std(), 1e-9)
    centre = np.array([y.mean(), x.mean()])[:, None, None]
    place = (np.indices(truth.shape) - centre) / rng.uniform(0.8, 1.2) + centre
    moved = place + bend + rng.normal(0, 0.06 * size, 2)[:, None, None]
    beside: np.ndarray = ndimage.map_coordinates(truth.astype(np.uint8), moved, order=0) > 0
    return beside if beside.any() else truth


class SparsePrompts:
    """The growing list of points of N targets, as padded tensors."""

    def __init__(self, count: int, slots: int) -> None:
        self.points = torch.zeros(count, slots, 2)
        self.kinds = torch.zeros(count, slots, dtype=torch.long)
        self._used = np.zeros(count, dtype=int)

    def add(self, index: int, position: np.ndarray, kind: PointKind) -> None:
        """Append a point at a position on the grid of logits."""
        slot = self._used[index]
        self.points[index, slot] = torch.from_numpy(to_input(position)).float()
        self.kinds[index, slot] = int(kind)
        self._used[index] += 1

    def first(self, index: int, area: np.ndarray, rng: np.random.Generator) -> None:
        """How a user begins: a click (70 %), a box (18 %), or both (12 %)."""
        way = rng.random()
        if way < 0.82:
            position = click_inside(area, rng)
            if position is not None:
                self.add(index, position, PointKind.POSITIVE)
        if way >= 0.7 and area.any():
            corners = draw_box(area, rng)
            self.add(index, corners[0], PointKind.BOX_TOP_LEFT)
            self.add(index, corners[1], PointKind.BOX_BOTTOM_RIGHT)
