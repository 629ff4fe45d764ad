"""Baseline: matching of prototypes on frozen embeddings. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame, draw_mask, logits_to_pixels
from ssmsam.progress import Progress, silent
from ssmsam_research.protocols.fewshot_task import SupportSlice, Task


@dataclass(frozen=True)
class FeatureMap:
    """How feature vectors are taken from an embedding: on ``side`` x ``side`` cells over the encoder's input.

    ``levels``: with those of the finer maps, else the image map alone.
    """

    side: int = 64
    levels: bool = True

    def features(self, embedding: Embedding) -> torch.Tensor:
        """Embedding of one slice -> (C, side, side)."""
        maps = [embedding["image"], *(embedding["levels"] if self.levels else ())]
        return torch.cat([self._resized(one.float()) for one in maps], dim=1)[0]

    def mask(self, mask: np.ndarray, frame: Frame) -> torch.Tensor:
        """Mask of a slice (height, width) -> the share of each cell that it fills, (side, side) in [0, 1]."""
        return draw_mask(mask, frame, self.side)[0, 0].clamp(0, 1)

    def inside(self, frame: Frame) -> torch.Tensor:
        """The cells that the slice covers, (side, side) bool: the rest of the input is empty."""
        return draw_mask(np.ones((frame.height, frame.width), dtype=bool), frame, self.side)[0, 0] > 0.5

    def pixels(self, logits: torch.Tensor, frame: Frame) -> np.ndarray:
        """Logits of the cells (side, side) -> mask (height, width) where they are positive."""
        return logits_to_pixels(logits[None], frame)[0] > 0

    def _resized(self, map_: torch.Tensor) -> torch.Tensor:
        if map_.shape[-1] > self.side:
            return F.adaptive_avg_pool2d(map_, self.side)
        return F.interpolate(map_, (self.side, self.side), mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class Example:
    """One support slice: features (C, side, side), mask and covered cells (side, side)."""

    features: torch.Tensor
    mask: torch.Tensor
    inside: torch.Tensor

    @classmethod
    def of(cls, one: SupportSlice, embeddings: VolumeEmbeddings, map_: FeatureMap) -> Example:
        frame = embeddings.frame
        return cls(
            map_.features(embeddings.slice(one.index)).cpu(),
            map_.mask(one.mask, frame),
            map_.inside(frame),
        )


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
