"""Other looks at the labelled slices: embedded once, before the training that cannot run the encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.encoders.embedder import Embedder
from ssmsam.encoders.encoder import Embedding
from ssmsam.fewshot.bank import stacked
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.progress import Progress, silent

_BATCH = 8


@dataclass(frozen=True)
class ViewConfig:
    """How labelled slices are varied, all of them alike in one view. Ranges are symmetric around no change."""

    views: int = 3
    """Besides the slices as they are."""
    rotation_deg: float = 12.0
    scale: float = 0.15
    shift: float = 0.08
    """Of the input's side."""
    gamma: float = 0.3


@dataclass(frozen=True, eq=False)
class View:
    """Slices in one look: their embeddings, and how they were moved, None for not at all."""

    embedding: Embedding
    matrix: torch.Tensor | None = None

    def moved(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (K, 1, S, S) of the slices as they are, moved like the slices."""
        return masks if self.matrix is None else _moved(masks, self.matrix)


def embedded_views(
    slices: Sequence[LabelledSlice],
    embedder: Embedder,
    *,
    config: ViewConfig,
    seed: int,
    progress: Progress = silent,
) -> list[View]:
    """The slices as they are, from their cached embeddings, and ``config.views`` others, through the encoder."""
    made = [View(stacked([one.embeddings.slice(one.index) for one in slices]))]
    if not config.views:
        return made
    inputs = torch.cat([one.embeddings.inputs([one.index]) for one in slices])
    rng = np.random.default_rng(seed)
    for number in range(config.views):
        progress("views", number, config.views)
        matrix = _matrix(rng, config)
        looks = _moved(inputs, matrix).clamp(0, 1) ** _gamma(rng, config)
        encoded = []
        for batch in looks.split(_BATCH):
            encoded += [embedder.embedding_of(half) for half in embedder.encode(batch, urgent=True)]
        made.append(View(stacked(encoded), matrix))
    progress("views", config.views, config.views)
    return made


def random_move(rng: np.random.Generator, config: ViewConfig) -> tuple[Callable[[torch.Tensor], torch.Tensor], float]:
    """One random look: how images (N, C, h, w) are moved, and the gamma of their contrast."""
    return partial(_moved, matrix=_matrix(rng, config)), _gamma(rng, config)


def _gamma(rng: np.random.Generator, config: ViewConfig) -> float:
    return float(np.exp(rng.uniform(-config.gamma, config.gamma)))


def _matrix(rng: np.random.Generator, config: ViewConfig) -> torch.Tensor:
    """A random similarity of the input, (1, 2, 3) as affine_grid takes it."""
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    scale = np.exp(rng.uniform(-config.scale, config.scale))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    x, y = rng.uniform(-config.shift, config.shift, 2) * 2
    return torch.tensor([[[cos, -sin, x], [sin, cos, y]]], dtype=torch.float32)


def _moved(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(matrix, [1, 1, *images.shape[-2:]], align_corners=False).to(images.device)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), mode="bilinear", align_corners=False)
