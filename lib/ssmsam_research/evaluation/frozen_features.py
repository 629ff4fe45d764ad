"""Embeddings of frozen encoders as maps of feature vectors, for the simplest methods that use them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame, draw_mask, logits_to_pixels
from ssmsam_research.evaluation.fewshot import SupportSlice


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
