"""Layers that several networks share.

Two-way attention: prompt tokens read the image, the image reads the tokens (Kirillov et al., 2023, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the model's."""

    def __init__(self, *, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, allowed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, Q, width), (B, K, width), (B, K, width) -> (B, Q, width). ``allowed`` (B, K) bool are the keys that
        count, all by default."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = None if allowed is None else allowed[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens talk to each other, read the image, think, and the image reads them."""

    def __init__(self, *, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.among_tokens = Attention(width=width, inner=width, heads=heads)
        self.tokens_to_image = Attention(width=width, inner=width // 2, heads=heads)
        self.image_to_tokens = Attention(width=width, inner=width // 2, heads=heads)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, token_place: torch.Tensor, image_place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        placed = tokens + token_place
        tokens = self.norms[0](tokens + self.among_tokens(placed, placed, tokens))
        tokens = self.norms[1](tokens + self.tokens_to_image(tokens + token_place, image + image_place, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.image_to_tokens(image + image_place, tokens + token_place, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention and a last reading of the image by the tokens."""

    def __init__(self, *, width: int, depth: int = 2, heads: int = 4, mlp: int = 256) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwoWayBlock(width=width, heads=heads, mlp=mlp) for _ in range(depth))
        self.last = Attention(width=width, inner=width // 2, heads=heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, image_place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, width), image cells (B, h*w, width) and their places -> both, updated.

        The tokens' own start values tell their place, as in SAM.
        """
        token_place = tokens
        for block in self.blocks:
            tokens, image = block(tokens, image, token_place, image_place)
        tokens = self.norm(tokens + self.last(tokens + token_place, image + image_place, image))
        return tokens, image


def doubled(x: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) -> (N, C, 2h, 2w), bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
