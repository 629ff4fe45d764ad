"""Baseline: matching of prototypes on frozen embeddings. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.embeddings.embedder import Embedder
from ssmsam.progress import Progress, silent
from ssmsam_research.evaluation.fewshot import Task
from ssmsam_research.evaluation.frozen_features import Example, FeatureMap

SHARPNESS = 20.0
"""What cosines are multiplied by before they compete."""


@dataclass(frozen=True)
class PrototypeMatching:
    """Each cell of the query goes to the class whose prototypes are nearest by cosine.

    A class has one prototype for each ``window`` x ``window`` cells of a support slice that lie in it for more than
    ``purity``; the object also has the mean of its features over each support slice, so that small objects have at
    least one. Prototypes of one class are weighted by their own similarity to the cell.
    """

    embedder: Embedder
    window: int = 4
    purity: float = 0.95
    map: FeatureMap = field(default_factory=lambda: FeatureMap(levels=False))

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        query, found = self.embedder.open(task.query), np.zeros(task.query.shape, dtype=bool)
        for slices, support in task.matched():
            examples = [Example.of(one, self.embedder.open(one.support.volume), self.map) for one in support]
            classes = self.prototypes(examples)
            for number, index in enumerate(slices):
                progress("prototypes", number, len(slices))
                features = self.map.features(query.slice(index)).cpu()
                found[index] = self.map.pixels(self.logits(features, classes), query.frame)
        return found

    def prototypes(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit prototypes of the object (N, C) and of everything else (M, C)."""
        objects, others = [], []
        for example in examples:
            window = F.avg_pool2d(example.features[None], self.window)[0].flatten(1).T
            share = F.avg_pool2d(example.mask[None, None], self.window).flatten()
            covered = F.avg_pool2d(example.inside[None, None].float(), self.window).flatten() > self.purity
            objects.append(window[covered & (share > self.purity)])
            others.append(window[covered & (share < 1 - self.purity)])
            if example.mask.sum() > 0:
                weight = example.mask / example.mask.sum()
                objects.append((example.features * weight).sum(dim=(1, 2))[None])
        return F.normalize(torch.cat(objects), dim=1), F.normalize(torch.cat(others), dim=1)

    def logits(self, features: torch.Tensor, classes: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Features of a slice (C, side, side) -> logits (side, side) of belonging to the object."""
        cells = F.normalize(features.flatten(1).T, dim=1)
        scores = [_nearness(cells, prototypes) for prototypes in classes]
        return (scores[0] - scores[1]).view(features.shape[1:])


def _nearness(cells: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """How near unit vectors (N, C) are to a class, (N,); no prototype at all is as far as can be."""
    if len(prototypes) == 0:
        return torch.full((len(cells),), -SHARPNESS)
    similarity = SHARPNESS * cells @ prototypes.T
    return (similarity.softmax(dim=1) * similarity).sum(dim=1)
