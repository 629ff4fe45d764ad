"""Baseline: a linear classifier of cells on frozen embeddings, trained on the support slices."""

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


@dataclass(frozen=True)
class Hyperplane:
    """``logits = features @ weights + bias`` for features (N, C)."""

    weights: torch.Tensor
    bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (C, side, side) -> logits (side, side)."""
        return torch.tensordot(self.weights, features, dims=1) + self.bias


@dataclass(frozen=True)
class LinearClassifier:
    """Logistic regression from feature vectors to the share of the cell that the object fills.

    Features are standardised over the support slices; ``penalty`` is the weight of the squared weights in the mean
    loss, ``steps`` the most steps of L-BFGS.
    """

    embedder: Embedder
    penalty: float = 1e-3
    steps: int = 60
    map: FeatureMap = field(default_factory=FeatureMap)

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        query, found = self.embedder.open(task.query), np.zeros(task.query.shape, dtype=bool)
        for slices, support in task.matched():
            examples = [Example.of(one, self.embedder.open(one.support.volume), self.map) for one in support]
            plane = self.fit(examples)
            for number, index in enumerate(slices):
                progress("linear classifier", number, len(slices))
                logits = plane.logits(self.map.features(query.slice(index)).cpu())
                found[index] = self.map.pixels(logits, query.frame)
        return found

    def fit(self, examples: Sequence[Example]) -> Hyperplane:
        """The classifier of the covered cells of all examples."""
        features = torch.cat([example.features[:, example.inside].T for example in examples])
        target = torch.cat([example.mask[example.inside] for example in examples])
        mean, spread = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
        standard = (features - mean) / spread
        weights = torch.zeros(standard.shape[1], requires_grad=True)
        bias = torch.zeros((), requires_grad=True)
        optimiser = torch.optim.LBFGS([weights, bias], max_iter=self.steps, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            error = F.binary_cross_entropy_with_logits(standard @ weights + bias, target)
            value = error + self.penalty * weights.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimiser.step(loss)
        scaled = weights.detach() / spread
        return Hyperplane(scaled, bias.detach() - scaled @ mean)
