"""Self-sampling: the support slices prompt the query by features at points of their own masks, without any click.

After Zhang et al. (WACV 2024), section on the self-sampling module. As there, learnable queries gather what the
sampled features say, and the query's map reads the queries. Where the released code differs from what it means to do,
ours does what is meant: features are read from the *support* image at (x, y), and besides points on the target there
are true negatives, near it and far from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ssmsam.fewshot.decoder import Shown
from ssmsam.fewshot.description import CELLS, FAR_CELLS, FOREGROUND_CELLS, LEAST_SHARE, RING_CELLS
from ssmsam.prompting.two_way import Attention

_KINDS = ((0, FOREGROUND_CELLS), (FOREGROUND_CELLS, RING_CELLS), (FOREGROUND_CELLS + RING_CELLS, FAR_CELLS))
"""Where the cells of one support slice lie that are on the target, around it, and far from it: (start, length)."""


@dataclass(frozen=True)
class SamplingConfig:
    """How many points are sampled from all support slices together, and how many queries gather them."""

    target: int = 20
    ring: int = 10
    far: int = 10
    queries: int = 10
    depth: int = 2
    heads: int = 4


@dataclass(frozen=True, eq=False)
class Sampled:
    """P points for each of N queries: ``features`` (N, P, D), ``kinds`` (N, P) 0 target, 1 ring, 2 far, ``shares``
    (N, P) of the target in [0, 1], ``near`` (N, P) closeness of their slices, ``valid`` (N, P) bool."""

    features: torch.Tensor
    kinds: torch.Tensor
    shares: torch.Tensor
    near: torch.Tensor
    valid: torch.Tensor


def sampled(shown: Shown, config: SamplingConfig) -> Sampled:
    """Points spread over all support slices in turn and over each of their areas; the same ones every time.

    Everything comes from the support's own masks and images: nothing of the query is at hand here.
    """
    chosen, kinds = [], []
    for kind, ((start, length), wanted) in enumerate(
        zip(_KINDS, (config.target, config.ring, config.far), strict=True)
    ):
        cells = torch.arange(shown.valid.shape[1], device=shown.valid.device).unflatten(0, (-1, CELLS))
        cells = cells[:, start : start + length].T.flatten()  # the first of every slice, then the second of every slice
        turn = torch.arange(len(cells), 0, -1, device=cells.device)
        usable = shown.valid[:, cells] & ((shown.shares[:, cells] > LEAST_SHARE) | (kind > 0))
        order = (usable * turn).topk(min(wanted, len(cells)), dim=1).indices
        chosen.append(cells[order])
        kinds.append(torch.full_like(order, kind))
    index = torch.cat(chosen, dim=1)
    return Sampled(
        features=shown.cells.gather(1, index[..., None].expand(-1, -1, shown.cells.shape[2])),
        kinds=torch.cat(kinds, dim=1),
        shares=shown.shares.gather(1, index),
        near=shown.cells_near.gather(1, index),
        valid=shown.valid.gather(1, index),
    )


class SelfSampling(nn.Module):
    """What the sampled points change in the query's map. Changes nothing before it is trained."""

    def __init__(self, *, width: int, config: SamplingConfig) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(0.1 * torch.randn(config.queries, width))
        self.kind = nn.Embedding(len(_KINDS), width)
        self.about = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width=width, heads=config.heads) for _ in range(config.depth))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, image: torch.Tensor, shown: Shown) -> torch.Tensor:
        """The query's map (N, D, h, w) -> what is to be added to it, the same shape."""
        points = sampled(shown, self.config)
        about = self.about(torch.stack([points.shares, points.near], dim=-1))
        tokens = self.norm(points.features) + self.kind(points.kinds) + about
        queries = self.queries.expand(len(image), -1, -1)
        cells = self.norm(image.flatten(2).transpose(1, 2))
        for block in self.blocks:
            queries, tokens, cells = block(queries, tokens, points.valid, cells)
        return self.out(cells).transpose(1, 2).unflatten(2, (image.shape[-2], image.shape[-1]))


class _Block(nn.Module):
    """Queries and points talk to each other, the queries think, and the map reads the queries."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.together = Attention(width=width, inner=width, heads=heads)
        self.read = Attention(width=width, inner=width // 2, heads=heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, queries: torch.Tensor, points: torch.Tensor, valid: torch.Tensor, cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count = queries.shape[1]
        everything = torch.cat([queries, points], dim=1)
        allowed = torch.cat([valid.new_ones(len(valid), count), valid], dim=1)
        everything = self.norms[0](everything + self.together(everything, everything, everything, allowed=allowed))
        queries, points = everything[:, :count], everything[:, count:]
        queries = self.norms[1](queries + self.mlp(queries))
        cells = self.norms[2](cells + self.read(cells, queries, queries))
        return queries, points, cells
