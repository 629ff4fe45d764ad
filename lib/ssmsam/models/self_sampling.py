"""The decoder of SSM-SAM on cached embeddings: self-sampling and mask attention in front of a token-query decoder.

Self-sampling: the support slices prompt the query by features at points of their own masks, without any click.

After Zhang et al. (WACV 2024), section on the self-sampling module. As there, learnable queries gather what the
sampled features say, and the query's map reads the queries. Where the released code differs from what it means to do,
ours does what is meant: features are read from the *support* image at (x, y), and besides points on the target there
are true negatives, near it and far from it.

The flexible mask attention decoder: the query's cells pass a mask on to cells that look alike.

After Zhang et al. (WACV 2024): the support mask is the value of an attention whose queries are the query's own map and
whose keys are the map weighted by that value; what comes out is weighted by the map again and is the value of the next
layer. Ours is what stands in for the blurred support mask, which only says something where support and query are
neighbours: the prior of the neighbouring annotated slices, and in other volumes what the map's cells find alike among
the support's. And the answer changes the map, which a token-query decoder then reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.closed_form import ClosedFormOptimiser, Regression
from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import (
    Corrections,
    CrossAttentionFeatures,
    DecoderContext,
    Proposal,
    TargetDecoder,
    likeness_votes,
)
from ssmsam.models.layers import Attention
from ssmsam.models.support_encoding import CELLS, FAR_CELLS, FOREGROUND_CELLS, LEAST_SHARE, RING_CELLS

VALUES = 4
"""Channels of a mask value: the prior of neighbours, its two kinds of trust, and what was matched."""


@dataclass(frozen=True)
class SelfSamplingConfig:
    """Which modules work, and their sizes."""

    self_sampling: bool = True
    mask_attention: bool = True
    target: int = 20
    """Points that are sampled on the target from all support slices together; so around it and far from it."""
    ring: int = 10
    far: int = 10
    queries: int = 10
    """How many queries gather the points."""
    depth: int = 2
    heads: int = 4
    most_keys: int = 256
    """Of the cells that masks attend to; larger maps are pooled for that. *Chosen on* five MR training patients
    (complete, five slices, 20 organs): 256 and 64 gave the Dice of 1024 to 0.1, in two thirds of the time."""


class MaskAttention(nn.Module):
    """What the masks change in the query's map. Changes nothing before it is trained."""

    def __init__(self, *, width: int, config: SelfSamplingConfig) -> None:
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


_KINDS = ((0, FOREGROUND_CELLS), (FOREGROUND_CELLS, RING_CELLS), (FOREGROUND_CELLS + RING_CELLS, FAR_CELLS))
"""Where the cells of one support slice lie that are on the target, around it, and far from it: (start, length)."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """P points for each of N queries: ``features`` (N, P, D), ``kinds`` (N, P) 0 target, 1 ring, 2 far, ``shares``
    (N, P) of the target in [0, 1], ``near`` (N, P) closeness of their slices, ``valid`` (N, P) bool."""

    features: torch.Tensor
    kinds: torch.Tensor
    shares: torch.Tensor
    near: torch.Tensor
    valid: torch.Tensor


def sampled(context: DecoderContext, config: SelfSamplingConfig) -> Sampled:
    """Points spread over all support slices in turn and over each of their areas; the same ones every time.

    Everything comes from the support's own masks and images: nothing of the query is at hand here.
    """
    chosen, kinds = [], []
    for kind, ((start, length), wanted) in enumerate(
        zip(_KINDS, (config.target, config.ring, config.far), strict=True)
    ):
        cells = torch.arange(context.valid.shape[1], device=context.valid.device).unflatten(0, (-1, CELLS))
        cells = cells[:, start : start + length].T.flatten()  # the first of every slice, then the second of every slice
        turn = torch.arange(len(cells), 0, -1, device=cells.device)
        usable = context.valid[:, cells] & ((context.shares[:, cells] > LEAST_SHARE) | (kind > 0))
        order = (usable * turn).topk(min(wanted, len(cells)), dim=1).indices
        chosen.append(cells[order])
        kinds.append(torch.full_like(order, kind))
    index = torch.cat(chosen, dim=1)
    return Sampled(
        features=context.cells.gather(1, index[..., None].expand(-1, -1, context.cells.shape[2])),
        kinds=torch.cat(kinds, dim=1),
        shares=context.shares.gather(1, index),
        near=context.cells_near.gather(1, index),
        valid=context.valid.gather(1, index),
    )


class SelfSampling(nn.Module):
    """What the sampled points change in the query's map. Changes nothing before it is trained."""

    def __init__(self, *, width: int, config: SelfSamplingConfig) -> None:
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

    def forward(self, image: torch.Tensor, context: DecoderContext) -> torch.Tensor:
        """The query's map (N, D, h, w) -> what is to be added to it, the same shape."""
        points = sampled(context, self.config)
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


_SHARPNESS = 12.0
"""What cosines are multiplied by before the support's cells compete for a match."""
_SOFTNESS = 2.0
"""Cells over which the edge of a prior is blurred."""


class SelfSamplingDecoder(TargetDecoder):
    """Zhang et al. (WACV 2024) around any :class:`~ssmsam.models.fewshot_decoder.TargetDecoder`.

    ``log_rates`` (groups,) are the meta-learned learning rates, as logarithms of factors.

    Both modules change the query's map, and ``inner`` reads the changed map; what it compares with the support is the
    map as it came from the encoder, so that it can be kept. Before any training the answer is that of ``inner``.
    """

    log_rates: torch.Tensor

    def __init__(self, inner: TargetDecoder, *, width: int, config: SelfSamplingConfig | None = None) -> None:
        super().__init__()
        self.config = config or SelfSamplingConfig()
        self.stride, self.logits_side = inner.stride, inner.logits_side
        self.pretrained, self.enlarges, self.varies = inner.pretrained, inner.enlarges, inner.varies
        self.inner = inner
        self.sampling = SelfSampling(width=width, config=self.config)
        self.mask_attention = MaskAttention(width=width, config=self.config)
        self.register_buffer("log_rates", torch.zeros(len(self.groups())))

    def view(self, embedding: Embedding) -> Embedding:
        return self.inner.view(embedding)

    def online_optimiser(self) -> ClosedFormOptimiser | None:
        return self.inner.online_optimiser()

    def moments(self, view: Embedding, known: torch.Tensor) -> torch.Tensor | None:
        return self.inner.moments(view, known)

    def regression(
        self, view: Embedding, masks: torch.Tensor, known: torch.Tensor, moments: torch.Tensor | None = None
    ) -> Regression | None:
        return self.inner.regression(view, masks, known, moments)

    def cross_attention(self, embedding: Embedding, context: DecoderContext) -> CrossAttentionFeatures:
        features = self.inner.cross_attention(embedding, context)
        return replace(
            features, votes=torch.cat([features.votes, likeness_votes(embedding["image"], context, _SHARPNESS)], dim=1)
        )

    def decode(
        self, embedding: Embedding, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> Proposal:
        image = embedding["image"]
        changed = image
        if self.config.self_sampling:
            changed = changed + self.sampling(image, context)
        if self.config.mask_attention:
            masks = self._masks(context, features.votes[:, -1:])
            changed = changed + self.attended(embedding, masks)
        inner = replace(features, votes=features.votes[:, :-1])
        return self.inner.decode({"image": changed, "levels": embedding["levels"]}, context, corrections, inner)

    def attended(self, embedding: Embedding, masks: torch.Tensor) -> torch.Tensor:
        """What mask attention adds to the queries' map (N, D, h, w), from masks (N, VALUES, h, w) in [0, 1]."""
        return self.mask_attention(embedding["image"], masks)

    def adaptable(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups().values() for parameter in group]

    def rated(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(group, float(rate)) for group, rate in zip(self.groups().values(), self.log_rates.exp(), strict=True)]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The adaptable parameters by the module they belong to: each has a learning rate of its own."""
        found = {part: list(getattr(self, part).parameters()) for part in ("sampling", "mask_attention")}
        adaptable = {id(parameter) for parameter in self.inner.adaptable()}
        for name, parameter in self.inner.named_parameters():
            if id(parameter) in adaptable:
                found.setdefault("inner." + name.split(".")[0], []).append(parameter)
        return found

    def _masks(self, context: DecoderContext, matched: torch.Tensor) -> torch.Tensor:
        """The values of mask attention, (N, VALUES, h, w)."""
        side = matched.shape[-2], matched.shape[-1]
        trusted = (context.trust.amax(1) > 0).to(context.prior)[:, None, None, None]
        prior = F.adaptive_avg_pool2d((context.prior / _SOFTNESS).sigmoid() * trusted, side)
        trust = context.trust[:, :, None, None].expand(-1, -1, *side)
        return torch.cat([prior, trust, matched], dim=1)
