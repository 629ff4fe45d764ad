"""The flexible mask attention decoder: the query's cells pass a mask on to cells that look alike.

After Zhang et al. (WACV 2024): the support mask is the value of an attention whose queries are the query's own map and
whose keys are the map weighted by that value; what comes out is weighted by the map again and is the value of the next
layer. Ours is what stands in for the blurred support mask, which only says something where support and query are
neighbours: the prior of the neighbouring annotated slices, and in other volumes what the map's cells find alike among
the support's. And the answer changes the map, which a token-query decoder then reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

VALUES = 4
"""Channels of a mask value: the prior of neighbours, its two kinds of trust, and what was matched."""


@dataclass(frozen=True)
class MaskAttentionConfig:
    """``most_keys`` bounds the cells that are attended to; larger maps are pooled for that."""

    depth: int = 2
    heads: int = 4
    most_keys: int = 1024


class MaskAttention(nn.Module):
    """What the masks change in the query's map. Changes nothing before it is trained."""

    def __init__(self, *, width: int, config: MaskAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(VALUES, width)
        self.layers = nn.ModuleList(_Layer(width=width, heads=config.heads) for _ in range(config.depth))
        self.joined = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, image: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The query's map (N, D, h, w) and masks (N, VALUES, h, w) in [0, 1] -> what is to be added to the map."""
        side = image.shape[-2], image.shape[-1]
        cells = self.norm(image.flatten(2).transpose(1, 2))
        value = self.value(masks.flatten(2).transpose(1, 2))
        for layer in self.layers:
            value = layer(cells, value, side, self.config.most_keys)
        joined = self.joined(cells + value)
        joined = joined + self.mlp(joined)
        return self.out(joined).transpose(1, 2).unflatten(2, side)


class LevelAttention(nn.Module):
    """What the masks change by way of further maps of the encoder. Changes nothing before it is trained.

    As published, one mask attention serves the maps of all levels. There each level then has a decoder of its own; here
    all add to the one map that a token-query decoder reads.
    """

    def __init__(self, *, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.gains = nn.Parameter(torch.zeros(len(channels)))

    def forward(self, levels: Sequence[torch.Tensor], masks: torch.Tensor, attention: MaskAttention) -> torch.Tensor:
        """Maps (N, c, h_l, w_l), coarsest last, and masks (N, VALUES, h, w) -> what is to be added, (N, D, h, w).

        Of the maps the last are read, as many as there are channels. Raises ValueError where there are fewer.
        """
        if len(levels) < len(self.project):
            raise ValueError(
                f"the decoder reads {len(self.project)} further maps of the encoder, which gives {len(levels)}: "
                "load the encoder with its levels"
            )
        side = masks.shape[-2], masks.shape[-1]
        used = zip(self.project, levels[-len(self.project) :], strict=True)
        maps = [F.adaptive_avg_pool2d(project(level), side) for project, level in used]
        changes = [gain * attention(one, masks) for gain, one in zip(self.gains, maps, strict=True)]
        return torch.stack(changes).sum(0)


class _Layer(nn.Module):
    """One mask attention: keys are the cells weighted by the value, and so is what comes out by the cells."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.content = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, cells: torch.Tensor, value: torch.Tensor, side: tuple[int, int], most: int) -> torch.Tensor:
        query, key, content = self.query(cells), self.key(cells * value), self.content(value)
        key, content = _pooled(key, side, most), _pooled(content, side, most)
        heads = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, content)]
        read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.out(read) * cells


def _pooled(cells: torch.Tensor, side: tuple[int, int], most: int) -> torch.Tensor:
    """(N, h*w, D) -> at most ``most`` cells, means of squares of them."""
    factor = 1
    while side[0] * side[1] > most * factor**2:
        factor *= 2
    if factor == 1:
        return cells
    return F.avg_pool2d(cells.transpose(1, 2).unflatten(2, side), factor).flatten(2).transpose(1, 2)
