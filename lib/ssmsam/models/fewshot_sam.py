"""The token-query mask decoder on SAM's embeddings, started from SAM's own decoder.

As Xie et al. (2024) reformulate it: target embeddings of labelled slices take the place of clicks. A reconstruction:
the paper's text leaves open how tokens enter. Ours too: what the cells of the query find among those of the support
slices, and the prior of neighbouring annotated slices, enter where SAM takes an earlier mask.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import (
    Corrections,
    CrossAttentionFeatures,
    DecoderContext,
    Proposal,
    TargetDecoder,
    likeness_votes,
)
from ssmsam.models.prompt_small import PointKind
from ssmsam.models.support_encoding import TokenKind

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_SHARPNESS = 20.0
"""What cosines are multiplied by before support cells compete."""
_CERTAINTY = 8.0
"""Logit of a unanimous vote, about that of a sure pixel in SAM's own answers."""
_OFFSET = 4.0
"""Signed distances, in cells, are divided by this before they join logits."""
_POINTS = {
    PointKind.POSITIVE: 1,
    PointKind.NEGATIVE: 0,
    PointKind.BOX_TOP_LEFT: 2,
    PointKind.BOX_BOTTOM_RIGHT: 3,
}
"""Our kinds of points -> SAM's point embeddings."""


class SamTargetNetwork(TargetDecoder):
    """The :class:`TargetDecoder` of SAM ViT-B, L, H and of networks with its layout (MedSAM).

    Without adaptation the tokens say nothing yet, and the votes alone prompt SAM's decoder.
    """

    pretrained = False
    enlarges = False

    def __init__(self, sam: Sam) -> None:
        """Copies SAM's small parts; its image encoder is not kept alive."""
        super().__init__()
        self.prompts = copy.deepcopy(sam.prompt_encoder)
        self.decoder = copy.deepcopy(sam.mask_decoder)
        self.width = width = self.decoder.transformer_dim
        self.stride = sam.image_encoder.img_size // self.prompts.image_embedding_size[0]
        self.logits_side = self.prompts.mask_input_size[0]
        self.target = nn.Linear(width, width)
        self.target_kind = nn.Embedding(len(TokenKind), width)
        self.vote = nn.Parameter(torch.tensor(_CERTAINTY))
        self.pull = nn.Linear(2, 1)
        self.presence = nn.Linear(3, 1)
        with torch.no_grad():
            # what SAM calls a token that is not a point: the start from which adaptation teaches tokens to speak
            self.target.weight.zero_()
            self.target.bias.copy_(self.prompts.not_a_point_embed.weight[0])
            self.target_kind.weight.zero_()
            self.presence.weight.copy_(torch.tensor([[4.0, 0.0, 0.0]]))
            self.presence.bias.zero_()

    def cross_attention(self, embedding: Embedding, context: DecoderContext) -> CrossAttentionFeatures:
        image = embedding["image"]
        votes, count = likeness_votes(image, context, _SHARPNESS), len(image)
        return CrossAttentionFeatures(image.new_zeros(count, 0, 0), votes, image.new_zeros(count, 0, 1, 1))

    def adaptable(self) -> list[nn.Parameter]:
        fixed = {
            id(p) for module in (self.prompts.pe_layer, self.prompts.point_embeddings) for p in module.parameters()
        }
        unused = [
            self.prompts.not_a_point_embed,
            self.prompts.no_mask_embed,
            self.decoder.output_hypernetworks_mlps[1:],
        ]
        fixed |= {id(p) for module in unused for p in module.parameters()}
        return [p for p in self.parameters() if id(p) not in fixed]

    def decode(
        self, embedding: Embedding, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> Proposal:
        pull = F.softplus(self.pull(context.trust)) * (context.trust.amax(1, keepdim=True) > 0)
        prior = pull[..., None, None] * context.prior / _OFFSET
        dense = self.prompts.mask_downscaling(self._earlier_mask(features, prior, corrections))
        logits, quality = self._decode(embedding["image"], self._tokens(context, corrections), dense)
        logits = logits + prior[:, 0]
        evidence = torch.stack([features.votes.amax((1, 2, 3)) - 0.5, quality, logits.amax((1, 2)) / 10], dim=1)
        return Proposal(logits, self.presence(evidence)[:, 0])

    def _earlier_mask(
        self, features: CrossAttentionFeatures, prior: torch.Tensor, corrections: Corrections
    ) -> torch.Tensor:
        """What stands in for an earlier answer: the proposal that was clicked on, else votes and prior."""
        side = (self.logits_side, self.logits_side)
        votes = F.interpolate(features.votes * 2 - 1, side, mode="bilinear", align_corners=False)
        corrected = corrections.previous.abs().amax((1, 2, 3), keepdim=True) > 0
        return torch.where(corrected, corrections.previous, self.vote * votes + prior)

    def _tokens(self, context: DecoderContext, corrections: Corrections) -> torch.Tensor:
        given = (context.kinds != TokenKind.NONE)[..., None]
        tokens = self.target(context.tokens * given) + self.target_kind(context.kinds)
        if not corrections.kinds.shape[1]:
            return tokens
        size = self.prompts.input_image_size
        points = self.prompts.pe_layer.forward_with_coords(corrections.points[None].flatten(0, 1) + 0.5, size)
        points = torch.where((corrections.kinds == PointKind.NONE)[..., None], torch.zeros_like(points), points)
        points = points + self.prompts.not_a_point_embed.weight * (corrections.kinds == PointKind.NONE)[..., None]
        for kind, number in _POINTS.items():
            points = points + self.prompts.point_embeddings[number].weight * (corrections.kinds == kind)[..., None]
        return torch.cat([tokens, points], dim=1)

    def _decode(
        self, image: torch.Tensor, tokens: torch.Tensor, dense: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """SAM's mask decoder for a batch of different images: logits (N, S, S) and predicted IoU (N,)."""
        own = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        queries = torch.cat([own.expand(len(image), -1, -1), tokens], dim=1)
        place = self.prompts.get_dense_pe().expand(len(image), -1, -1, -1)
        queries, cells = self.decoder.transformer(image + dense, place, queries)
        cells = cells.transpose(1, 2).unflatten(2, (image.shape[-2], image.shape[-1]))
        fine = self.decoder.output_upscaling(cells)
        weights = self.decoder.output_hypernetworks_mlps[0](queries[:, 1])
        return torch.einsum("nc,nchw->nhw", weights, fine), self.decoder.iou_prediction_head(queries[:, 0])[:, 0]
