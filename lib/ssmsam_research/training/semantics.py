"""Naming organs as a side task: it teaches the encoder what is the same in different patients.

The names never reach a decoder, and the layer that learns them is not shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.encoder import Embedding
from ssmsam.models.small_encoder import SPEC
from ssmsam_research.training.pack import PackedVolume


class Vocabulary:
    """Class numbers of all organs of a pack; 0 is anything else. The same name is the same class in every dataset,
    and labels that are only numbered belong to their dataset."""

    def __init__(self, volumes: Sequence[PackedVolume]) -> None:
        names = {_class_name(volume, name) for volume in volumes for name in volume.info.labels}
        self.names = ("", *sorted(names))
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._of = cache(self._table)

    def __len__(self) -> int:
        return len(self.names)

    def classes(self, volume: PackedVolume) -> np.ndarray:
        """Label value -> class number, (256,)."""
        return self._of(volume)

    def labelled(self, volume: PackedVolume) -> np.ndarray:
        """(C,) bool: the classes that were drawn wherever they are in this volume."""
        known = np.zeros(len(self), dtype=bool)
        known[self.classes(volume)[list(volume.info.labels.values())]] = True
        return known

    def _table(self, volume: PackedVolume) -> np.ndarray:
        table = np.zeros(256, dtype=np.int64)
        for name, value in volume.info.labels.items():
            table[value] = self._numbers[_class_name(volume, name)]
        return table


def _class_name(volume: PackedVolume, name: str) -> str:
    return f"{volume.info.dataset} {name}" if name.isdigit() else name


class SemanticHead(nn.Module):
    """Class scores of every fourth pixel from the image embedding and the level at stride 4."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.image = nn.Conv2d(SPEC.channels, classes, 1)
        self.level = nn.Conv2d(SPEC.level_channels[1], classes, 1)

    def forward(self, embedding: Embedding) -> torch.Tensor:
        """-> (B, classes, side / 4, side / 4)."""
        coarse = F.interpolate(self.image(embedding["image"]), scale_factor=2, mode="bilinear", align_corners=False)
        return coarse + self.level(embedding["levels"][1])


def semantic_loss(scores: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (B, C, h, w) and class numbers (B, h, w), -1 to leave out.

    Where nothing labelled is, any class that is not ``labelled`` (B, C) in this dataset may be: their probabilities
    count together with that of class 0.
    """
    joined = labelled.clone()
    joined[:, 0] = False
    outside = scores.masked_fill(joined[:, :, None, None], -1e4).logsumexp(1, keepdim=True)
    logs = torch.cat([outside, scores[:, 1:].masked_fill(~joined[:, 1:, None, None], -1e4)], dim=1).log_softmax(1)
    learned = target >= 0
    if not learned.any():
        return scores.sum() * 0
    losses = F.nll_loss(logs, target.clamp(min=0), reduction="none")
    weight = learned * torch.where(target > 0, 2.0, 1.0)
    return (losses * weight).sum() / weight.sum()
