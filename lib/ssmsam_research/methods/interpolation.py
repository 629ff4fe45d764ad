"""Baselines that look at the annotated masks only, never at the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.propagation import DEFAULTS, PropagationConfig, propagate
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.ops import signed_distance
from ssmsam.progress import Progress, silent
from ssmsam.volume.geometry import Plane
from ssmsam_research.protocols.fewshot_task import Task


@dataclass(frozen=True)
class ShapeInterpolation:
    """The shape between two annotated slices, by their signed distances: what "fill between slices" tools do.

    ``beyond`` carries the outermost masks further, by that share of the mean gap between annotated slices.
    """

    beyond: float = 0.0

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        masks = task.annotated
        filled = carried_on(masks, task, beyond=self.beyond)
        pixel_mm = Plane(0).pixel_mm(task.query.grid)
        distances = {index: signed_distance(mask, spacing=pixel_mm) for index, mask in masks.items()}
        for lower, upper in pairwise(sorted(masks)):
            for index in range(lower + 1, upper):
                if masks[lower].any() and masks[upper].any():
                    share = (index - lower) / (upper - lower)
                    filled[index] = (1 - share) * distances[lower] + share * distances[upper] > 0
        return filled


@dataclass(frozen=True)
class NearestSlice:
    """The mask of the nearest annotated slice, the lower one half-way between two; ``beyond`` as above."""

    beyond: float = 0.5

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        masks = task.annotated
        filled = carried_on(masks, task, beyond=self.beyond)
        order = sorted(masks)
        for index in range(order[0], order[-1] + 1):
            filled[index] = masks[min(order, key=lambda known: (abs(known - index), known))]
        return filled


def carried_on(masks: Mapping[int, np.ndarray], task: Task, *, beyond: float) -> np.ndarray:
    """A volume with the annotated slices, and the outermost ones copied outwards. Raises ValueError without any."""
    if not masks:
        raise ValueError("this method needs annotated slices of the query itself")
    order = sorted(masks)
    filled = np.zeros(task.query.shape, dtype=bool)
    for index, mask in masks.items():
        filled[index] = mask
    reach = round(beyond * (order[-1] - order[0]) / max(1, len(order) - 1))
    filled[max(0, order[0] - reach) : order[0]] = masks[order[0]]
    filled[order[-1] + 1 : order[-1] + 1 + reach] = masks[order[-1]]
    return filled


@dataclass(frozen=True)
class SeedPropagation:
    """The masks of the annotated slices, spread in both directions. Needs annotated slices of the query itself."""

    embedder: Embedder
    decoder: PromptDecoder
    config: PropagationConfig = DEFAULTS

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        limits = (task.extent.start, task.extent.stop - 1) if task.extent else None
        config = replace(self.config, limits=limits)
        found = propagate(self.embedder.open(task.query), self.decoder, task.annotated, config, progress)
        mask = np.zeros(task.query.shape, dtype=bool)
        for index, one in found.masks.items():
            mask[index] = one
        return mask
