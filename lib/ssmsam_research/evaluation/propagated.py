"""Annotated slices as seeds of the prompted decoder's propagation: what ``sam_3d`` does with corrected slices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.propagation import DEFAULTS, PropagationConfig, propagate
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.progress import Progress, silent
from ssmsam_research.evaluation.fewshot import Task


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
