"""Attention with SAM's relative position bias, a few heads at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BIAS_CELLS = 2**22
"""Elements of the bias that are made at once, 16 MB, or one head where that alone is more. All heads of SAM at once
need 800 MB: the operating system then spends more time handing out memory than the processor spends computing."""


class HeadwiseAttention(nn.Module):
    """The weights of a ``segment_anything`` attention module, computed exactly but in little memory.

    Takes over the parameters of ``stock`` under the same names, so that state dicts stay the same.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.num_heads: int = stock.num_heads
        self.qkv = stock.qkv
        self.proj = stock.proj
        self.use_rel_pos: bool = stock.use_rel_pos
        if self.use_rel_pos:
            self.rel_pos_h = stock.rel_pos_h
            self.rel_pos_w = stock.rel_pos_w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        tokens = height * width
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.flatten(1, 2).unbind(0)  # each (B * heads, tokens, channels / heads)
        step = max(1, BIAS_CELLS // tokens**2)
        scratch = torch.empty(step, height, width, height, width, dtype=x.dtype, device=x.device)
        parts = []
        for start in range(0, len(query), step):
            q, k, v = (part[start : start + step, None] for part in (query, key, value))
            bias = self._bias(q[:, 0], scratch[: len(q)]) if self.use_rel_pos else None
            parts.append(F.scaled_dot_product_attention(q, k, v, bias)[:, 0])
        merged = torch.cat(parts).view(batch, self.num_heads, tokens, -1).transpose(1, 2)
        return self.proj(merged.reshape(batch, height, width, channels))

    def _bias(self, query: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        """Queries (N, tokens, c) -> (N, 1, tokens, tokens): for each query, row term plus column term of the key.

        Written into ``scratch`` (N, H, W, H, W), memory that is used again and again, unless gradients need it.
        """
        height, width = scratch.shape[1:3]
        grid = query.view(-1, height, width, query.shape[-1])
        rows = torch.einsum("nhwc,hkc->nhwk", grid, relative(self.rel_pos_h, height))[..., :, None]
        columns = torch.einsum("nhwc,wkc->nhwk", grid, relative(self.rel_pos_w, width))[..., None, :]
        bias = rows + columns if rows.requires_grad else torch.add(rows, columns, out=scratch)
        return bias.reshape(len(query), 1, height * width, height * width)


def relative(table: torch.Tensor, size: int) -> torch.Tensor:
    """Vectors (2 * size - 1, c) by distance -> (size, size, c) by the positions of query and key along one axis."""
    if len(table) != 2 * size - 1:
        raise ValueError(f"these weights are for {(len(table) + 1) // 2} tokens along an axis, got {size}")
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]
