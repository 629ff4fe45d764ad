"""The token-query mask decoder on the small model's embeddings.

Of Xie et al. (2024): target embeddings of labelled slices take the place of clicks among the tokens of SAM's two-way
transformer; the encoder stays frozen. Ours: tokens of surroundings beside those of the target, cells of the support
slices that every query cell can read, the prior of neighbouring annotated slices, the encoder's finer levels, and
clicks that correct a proposal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import Corrections, CrossAttentionFeatures, DecoderContext, Proposal, TargetDecoder
from ssmsam.models.layers import TwoWayTransformer, doubled
from ssmsam.models.prompt_small import LOGITS_STRIDE, WIDTH, PlaceEncoding, PointKind, draw_prompts
from ssmsam.models.small_encoder import SPEC
from ssmsam.models.support_encoding import TokenKind

STRIDE = SPEC.stride
_HEADS, _HEAD_WIDTH = 4, 24
DENSE = 7
"""Maps into which prompts and prior are drawn."""
_NEVER = 1e3
"""What the score of a cell that does not count is lowered by."""
_OFFSET = 4.0
"""Signed distances are divided by this before they join the logits."""


class SupportCrossAttention(nn.Module):
    """Every cell of the query compares itself with the cells of the support slices and reads from the alike.

    The share of the target in the cells that are read is a vote; several heads vote.
    """

    def __init__(self) -> None:
        super().__init__()
        inner = _HEADS * _HEAD_WIDTH
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, inner)
        self.key = nn.Linear(WIDTH, inner)
        self.value = nn.Linear(WIDTH, inner)
        self.query_place = nn.Linear(WIDTH, inner, bias=False)
        self.key_place = nn.Linear(WIDTH, inner, bias=False)
        self.near = nn.Linear(1, inner)
        self.sharpness = nn.Parameter(torch.full((_HEADS, 1, 1), 2.0))
        self.out = nn.Linear(inner + _HEADS, WIDTH)
        with torch.no_grad():  # like attends to like from the start
            self.key.weight.copy_(self.query.weight)
            self.key.bias.copy_(self.query.bias)
            self.key_place.weight.copy_(self.query_place.weight)

    def forward(
        self, cells: torch.Tensor, places: torch.Tensor, context: DecoderContext, support_places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Query cells (N, K, D) with encoded places (K, D), support places (N, M, D) -> what was read (N, K, D) and
        the votes (N, HEADS, K) in [0, 1].

        One more channel than the heads have carries, beside the keys, which cells do not count, and beside the
        values, the shares: that way one fused attention does everything. Cells that count for no query, a quarter or
        more of them, are left out.
        """
        counted = context.valid.any(0)
        counted[:1] = True  # softmax needs one
        support, near, valid, share, support_places = (
            one[:, counted]
            for one in (context.cells, context.cells_near, context.valid, context.shares, support_places)
        )
        query = self._heads(self.query(self.norm(cells)) + 0.5 * self.query_place(places)) * self.sharpness
        key = self.key(self.norm(support)) + 0.5 * self.key_place(support_places)
        key = self._heads(key + self.near(near[..., None]))
        excluded = (valid.to(key) - 1)[:, None, :, None].expand(-1, _HEADS, -1, -1) * _NEVER
        share = share[:, None, :, None].expand(-1, _HEADS, -1, -1)
        read = F.scaled_dot_product_attention(
            torch.cat([query, torch.ones_like(query[..., :1])], dim=-1),
            torch.cat([key, excluded], dim=-1),
            torch.cat([self._heads(self.value(support)), share], dim=-1),
            scale=_HEAD_WIDTH**-0.5,
        )
        return self.out(read.transpose(1, 2).flatten(2)), read[..., -1]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (_HEADS, _HEAD_WIDTH)).transpose(1, 2)


class PromptMaps(nn.Module):
    """Prior, proposal and clicks as maps at the strides 2, 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.dense2 = nn.Sequential(nn.Conv2d(DENSE, 12, 3, padding=1), nn.GELU())
        self.dense4 = nn.Sequential(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.GELU())
        self.dense8 = nn.Sequential(nn.Conv2d(24, 64, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(64, WIDTH, 1))

    def drawn(self, context: DecoderContext, corrections: Corrections) -> torch.Tensor:
        """The maps that go in, (N, channels, S, S)."""
        side = context.prior.shape[-2], context.prior.shape[-1]
        drawn = draw_prompts(corrections.points, corrections.kinds, side)
        trusted = (context.trust.amax(1) > 0).to(context.prior)[:, None, None, None]
        trust = context.trust[:, :, None, None].expand(-1, -1, *side)
        maps = [(corrections.previous / 4).tanh(), drawn, (context.prior / 4).tanh() * trusted, trust]
        return torch.cat(maps, dim=1)

    def forward(self, context: DecoderContext, corrections: Corrections) -> list[torch.Tensor]:
        at2 = self.dense2(self.drawn(context, corrections))
        at4 = self.dense4(at2)
        return [at2, at4, self.dense8(at4)]


class TargetNetwork(TargetDecoder):
    """Embeddings of queries + :class:`DecoderContext` (+ :class:`Corrections`) -> :class:`Proposal`.

    Works at any input size that the encoder takes.
    """

    stride = STRIDE
    width = WIDTH
    logits_side = SPEC.input_size // LOGITS_STRIDE

    def __init__(self) -> None:
        super().__init__()
        self.place = PlaceEncoding(WIDTH)
        self.point = nn.Embedding(len(PointKind), WIDTH)
        self.target = nn.Linear(WIDTH, WIDTH)
        self.target_kind = nn.Embedding(len(TokenKind), WIDTH)
        self.near = nn.Linear(1, WIDTH)
        self.maps = PromptMaps()
        self.reading = SupportCrossAttention()
        self.alike = nn.Conv2d(2 + _HEADS, WIDTH, 1)
        self.own = nn.Embedding(2, WIDTH)
        self.transformer = TwoWayTransformer(width=WIDTH)
        self.up4 = nn.Conv2d(WIDTH, 48, 1)
        self.dense4 = nn.Conv2d(24, 48, 1)
        self.votes4 = nn.Conv2d(_HEADS, 48, 1)
        self.mix4 = nn.Sequential(nn.GroupNorm(8, 48), nn.GELU(), nn.Conv2d(48, 48, 3, padding=1))
        self.up2 = nn.Conv2d(48, 24, 1)
        self.level2 = nn.Conv2d(16, 24, 1)
        self.dense2 = nn.Conv2d(12, 24, 1)
        self.mix2 = nn.Sequential(nn.GroupNorm(4, 24), nn.GELU(), nn.Conv2d(24, 24, 3, padding=1), nn.GELU())
        self.hyper = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 24 + 1))
        self.presence = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        self.blend = nn.Linear(2, 1)

    def cross_attention(self, embedding: Embedding, context: DecoderContext) -> CrossAttentionFeatures:
        image = embedding["image"]
        height, width = image.shape[-2:]
        places = self.place.cells(height, width, STRIDE)
        read, votes = self.reading(image.flatten(2).transpose(1, 2), places, context, self.place(context.places))
        alike = torch.cat([self._alike(image, context), votes.unflatten(2, (height, width))], dim=1)
        return CrossAttentionFeatures(read, alike, image.new_zeros(len(image), 0, 1, 1))

    def dense_maps(
        self, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> list[torch.Tensor]:
        """Everything dense, drawn into maps at the strides 2, 4 and 8."""
        return self.maps(context, corrections)

    def decode(
        self, embedding: Embedding, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> Proposal:
        image = embedding["image"]
        height, width = image.shape[-2:]
        at2, at4, at8 = self.dense_maps(context, corrections, features)
        places = self.place.cells(height, width, STRIDE)
        votes = features.votes[:, 2:]
        cells = (image + at8 + self.alike(features.votes)).flatten(2).transpose(1, 2) + features.cells
        tokens = torch.cat([self.own.weight.expand(len(image), -1, -1), self._tokens(context, corrections)], dim=1)
        tokens, cells = self.transformer(tokens, cells, places)
        coarse = cells.transpose(1, 2).unflatten(2, (height, width))
        fine = self._upscale(coarse, embedding["levels"], at2, at4, votes)
        weights = self.hyper(tokens[:, 0])
        logits = torch.einsum("nc,nchw->nhw", weights[:, :-1], fine) / 4 + weights[:, -1, None, None]
        pull = F.softplus(self.blend(context.trust)) * (context.trust.amax(1, keepdim=True) > 0)
        logits = logits + pull[:, :, None] * context.prior[:, 0] / _OFFSET
        return Proposal(logits, self.presence(tokens[:, 1])[:, 0])

    def adaptable(self) -> list[nn.Parameter]:
        kept = {id(p) for module in (self.reading, self.place) for p in module.parameters()}
        return [p for p in self.parameters() if id(p) not in kept]

    def _tokens(self, context: DecoderContext, corrections: Corrections) -> torch.Tensor:
        given = (context.kinds != TokenKind.NONE)[..., None]
        described = (self.target(context.tokens) + self.near(context.near[..., None])) * given
        clicked = (corrections.kinds != PointKind.NONE)[..., None]
        points = self.point(corrections.kinds) + self.place(corrections.points) * clicked
        return torch.cat([described + self.target_kind(context.kinds), points], dim=1)

    def _alike(self, image: torch.Tensor, context: DecoderContext) -> torch.Tensor:
        """Greatest cosine of each cell with the tokens of the target, and of anything else: (N, 2, h, w)."""
        cosines = torch.einsum("ntc,nchw->nthw", F.normalize(context.tokens, dim=-1), F.normalize(image, dim=1))
        own = (context.kinds == TokenKind.TARGET) | (context.kinds == TokenKind.PART)
        other = (context.kinds == TokenKind.RING) | (context.kinds == TokenKind.FAR)
        return torch.stack([cosines.masked_fill(~kind[..., None, None], -1.0).amax(1) for kind in (own, other)], dim=1)

    def _upscale(
        self,
        cells: torch.Tensor,
        levels: list[torch.Tensor],
        at2: torch.Tensor,
        at4: torch.Tensor,
        votes: torch.Tensor,
    ) -> torch.Tensor:
        """(N, D, h, w) at stride 8 -> (N, 24, 4h, 4w), with the encoder's fine levels, the maps and the votes."""
        middle = doubled(self.up4(cells) + self.votes4(votes)) + levels[1] + self.dense4(at4)
        middle = middle + self.mix4(middle)
        return self.mix2(doubled(self.up2(middle)) + self.level2(levels[0]) + self.dense2(at2))
