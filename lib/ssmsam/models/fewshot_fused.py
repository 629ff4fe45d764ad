"""One few-shot decoder that gets pretrained features, the online optimiser's answer and every prior.

The token-query decoder of ``fewshot_small`` works on the pyramid of the small encoder, which is fine and
knows abdomens. Here the features of the pretrained medical encoder join it, cell by cell, and the logits of the online
optimiser come in as one more map with its own trust: how well it does on labelled slices outside the support. So do
the masks of other volumes that registration propagates. Last, the shape that is interpolated between annotated slices
is weighed against all this, cell by cell. New parts start from zero, so that before any training the
decoder is the one that it was made from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.closed_form import ClosedFormOptimiser, Regression
from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import (
    ATLAS_MAPS,
    HELD_OUT,
    Corrections,
    CrossAttentionFeatures,
    DecoderContext,
    Proposal,
)
from ssmsam.models.fewshot_small import DENSE, TargetNetwork
from ssmsam.models.prompt_small import WIDTH

STAGES = (64, 8, 160, 40)
"""Channels of the pretrained encoder as it is kept: its output and the stages 2, 3 and 4."""
IMAGE = 256
"""Channels of its output as it is handed out."""
PLACES = 5
"""Where a cell is in the slice, x and y in [-1, 1], and their products: like organs lie in like places."""
FEATURES = sum(STAGES) + PLACES
_TANH = 4.0
"""What logits are divided by before they become a map: a guess."""
_BLEND = 16
"""Channels of the networks that weigh what is added to the logits: a guess."""


class _CellWeight(nn.Module):
    """A small network that says, cell by cell, how much of something is added to the logits; nothing at first.

    It reads the prompts ``drawn`` as maps (N, DENSE, S, S), the ``logits`` (N, S, S), the online optimiser's answer and
    its trust ``fitted`` (N, 2, S, S), and ``further`` maps.
    """

    def __init__(self, further: int, weights: int = 1) -> None:
        super().__init__()
        self.read = nn.Conv2d(DENSE + 3 + further, _BLEND, 1)
        self.around = nn.Conv2d(_BLEND, _BLEND, 3, padding=1)
        self.weigh = nn.Conv2d(_BLEND, weights, 1)
        for parameter in self.weigh.parameters():
            nn.init.zeros_(parameter)

    def weight(
        self, logits: torch.Tensor, drawn: torch.Tensor, fitted: torch.Tensor, *further: torch.Tensor
    ) -> torch.Tensor:
        """(N, weights, S, S); of ``further`` (N, C, S, S) or (N, C, 1, 1)."""
        side = logits.shape[-2:]
        maps = [drawn, (logits[:, None] / _TANH).tanh(), fitted, *(one.expand(-1, -1, *side) for one in further)]
        return self.weigh(F.gelu(self.around(F.gelu(self.read(torch.cat(maps, dim=1))))))


class ShapeBlend(_CellWeight):
    """How much more the interpolated shape counts, cell by cell.

    The decoder's own weight of the shape is one number a slice and falls with the distance to annotated slices. Where
    these are many, interpolation alone can be better than a decoder that has never seen such an organ. This small
    network reads both answers, how well the online optimiser does, and how alike the annotated slices on both sides
    are. It changes nothing where there is no annotated slice in the volume.
    """

    def __init__(self) -> None:
        super().__init__(further=1)

    def forward(
        self, logits: torch.Tensor, drawn: torch.Tensor, fitted: torch.Tensor, context: DecoderContext
    ) -> torch.Tensor:
        """What is added to ``logits`` (N, S, S): ``drawn`` (N, DENSE, S, S) are the prompts as maps, ``fitted``
        (N, 2, S, S) the online optimiser's answer and its trust."""
        weight = self.weight(logits, drawn, fitted, context.agreement[:, :, None, None])
        given = (context.trust.amax(1) > 0).to(logits)[:, None, None]
        return given * weight[:, 0] * context.prior[:, 0]


class HeldOutCorrection(_CellWeight):
    """What is put right, cell by cell, after what the decoder missed on the annotated slices around.

    Each annotated slice was answered with only the others as context. What was missed there is missed alike on the
    slices nearby: regression kriging (Odeh et al., 1995), with the decoder as the regression. This small network says
    how much of the interpolated error is added, of that which followed the anatomy and of that which did not. It reads
    how decoder and interpolation did on the slices that were held out, how many these were, and how much further from
    any annotated slice than the query: the further, the less is missed here of what was missed there. It changes
    nothing where none was held out.
    """

    def __init__(self) -> None:
        super().__init__(further=3 + HELD_OUT, weights=2)

    def forward(
        self, logits: torch.Tensor, drawn: torch.Tensor, fitted: torch.Tensor, context: DecoderContext
    ) -> torch.Tensor:
        """What is added to ``logits`` (N, S, S); ``drawn`` and ``fitted`` as for :class:`ShapeBlend`."""
        told = torch.cat([context.agreement, context.held_out], dim=1)[:, :, None, None]
        weight = self.weight(logits, drawn, fitted, context.error, told)
        return _TANH * (weight * context.error).sum(1)


class FusedTargetNetwork(TargetNetwork):
    """The :class:`TargetNetwork` for embeddings of the pretrained encoder with the small encoder's
    pyramid beside it: ``image`` and the levels stage 2, 3 and 4 of the first, and the levels at the strides 2, 4 and 8
    of the second."""

    enlarges = varies = False  # encoding slices anew takes too long
    corrects = moving = follows = True
    image_mean: torch.Tensor
    image_basis: torch.Tensor
    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.zeros(IMAGE))
        self.register_buffer("image_basis", torch.eye(IMAGE, STAGES[0]))
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.optimiser = ClosedFormOptimiser(FEATURES)
        self.join8 = nn.Conv2d(FEATURES, WIDTH, 1)
        self.join4 = nn.Conv2d(STAGES[0] + STAGES[1], 48, 1)
        self.fitted2 = nn.Conv2d(2, 12, 3, padding=1, bias=False)
        self.fitted8 = nn.Conv2d(2, WIDTH, 1, bias=False)
        self.follow = nn.Linear(1, 1)
        self.atlas2 = nn.Conv2d(ATLAS_MAPS, 12, 3, padding=1, bias=False)
        self.atlas8 = nn.Conv2d(ATLAS_MAPS, WIDTH, 1, bias=False)
        self.carry = nn.Linear(2, 1, bias=False)
        self.shape = ShapeBlend()
        self.correction = HeldOutCorrection()
        for part in (self.join8, self.join4, self.fitted2, self.fitted8, self.follow, *self._of_atlases):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)

    @property
    def _of_atlases(self) -> tuple[nn.Module, ...]:
        return self.atlas2, self.atlas8, self.carry

    def features(self, embedding: Embedding) -> torch.Tensor:
        """The pretrained features of every cell, (N, FEATURES, 64, 64) at the standard size, of comparable spread.

        The output of the encoder may come as it is kept, in fewer channels, or as it is handed out.
        """
        image, levels = embedding["image"], embedding["levels"][:3]
        if image.shape[1] == IMAGE:
            cells = (image - self.image_mean[:, None, None]).flatten(2).transpose(1, 2) @ self.image_basis
            image = cells.transpose(1, 2).unflatten(2, image.shape[-2:])
        side = image.shape[-2:]
        maps = [image, *(_to(_by_cell(level), side) for level in levels), _places(image)]
        joined = torch.cat([_by_cell(one) for one in maps], dim=1)
        return (joined - self.centre[:, None, None]) / self.spread[:, None, None]

    def view(self, embedding: Embedding) -> Embedding:
        """The pyramid of the small encoder with the pretrained features in it, and as a last level what the
        online optimiser regresses on."""
        features = self.features(embedding)
        fine, middle, image = (_by_cell(level) for level in embedding["levels"][3:])
        coarse = F.avg_pool2d(features, features.shape[-1] // image.shape[-1])
        middle = middle + self.join4(_to(features[:, : STAGES[0] + STAGES[1]], middle.shape[-2:]))
        return {"image": image + self.join8(coarse), "levels": [fine, middle, self.optimiser.scaled(features)]}

    def online_optimiser(self) -> ClosedFormOptimiser:
        return self.optimiser

    @torch.no_grad()
    def moments(self, view: Embedding, known: torch.Tensor) -> torch.Tensor:
        return self.optimiser.moments(view["levels"][2], known)

    @torch.no_grad()
    def regression(
        self, view: Embedding, masks: torch.Tensor, known: torch.Tensor, moments: torch.Tensor | None = None
    ) -> Regression:
        return self.optimiser.regression(view["levels"][2], masks, known, moments)

    def cross_attention(self, embedding: Embedding, context: DecoderContext) -> CrossAttentionFeatures:
        features = super().cross_attention(embedding, context)
        logits = self.optimiser.logits(embedding["levels"][2], context.weights)
        given = context.weights.abs().amax(1) > 0
        maps = torch.stack([logits, context.fit[:, :, None].expand_as(logits)], dim=1) * given[:, None, None, None]
        return CrossAttentionFeatures(features.cells, features.votes, maps)

    def dense_maps(
        self, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> list[torch.Tensor]:
        maps = _fitted_maps(_to(features.fitted, context.prior.shape[-2:]))
        drawn = self.maps.dense2[0](self.maps.drawn(context, corrections))
        at2 = F.gelu(drawn + self.fitted2(maps) + self.atlas2(context.atlas))
        at4 = self.maps.dense4(at2)
        at8 = self.maps.dense8(at4) + self.fitted8(F.avg_pool2d(maps, 4)) + self.atlas8(F.avg_pool2d(context.atlas, 4))
        return [at2, at4, at8]

    def decode(
        self, embedding: Embedding, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> Proposal:
        proposal = super().decode(embedding, context, corrections, features)
        pull = self.follow(features.fitted[:, 1, :1, :1].flatten(1))[:, :, None]
        fitted = _to(features.fitted, context.prior.shape[-2:])
        logits = proposal.logits + pull * fitted[:, 0]
        distance, trust, likely = context.atlas.unbind(1)
        weight = self.carry(torch.stack([trust, trust * likely], dim=-1))[..., 0]
        logits = logits + weight * distance
        drawn, maps = self.maps.drawn(context, corrections), _fitted_maps(fitted)
        logits = logits + self.shape(logits, drawn, maps, context)
        return Proposal(logits + self.correction(logits, drawn, maps, context), proposal.presence)

    def adaptable(self) -> list[nn.Parameter]:
        fixed = (self.optimiser, self.join8, self.join4, self.shape, self.correction, *self._of_atlases)
        kept = {id(p) for module in fixed for p in module.parameters()}
        return [p for p in super().adaptable() if id(p) not in kept]


def _by_cell(maps: torch.Tensor) -> torch.Tensor:
    """The same numbers with all channels of a cell side by side in memory: several times as fast to enlarge, to
    average and to regress on."""
    return maps.contiguous(memory_format=torch.channels_last)


def _to(maps: torch.Tensor, side: torch.Size | tuple[int, ...]) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == tuple(side):
        return maps
    return F.interpolate(maps, tuple(side), mode="bilinear", align_corners=False)


def _fitted_maps(fitted: torch.Tensor) -> torch.Tensor:
    """The online optimiser's logits and how far they can be trusted, (N, 2, S, S), as maps."""
    return torch.cat([(fitted[:, :1] / _TANH).tanh(), fitted[:, 1:]], dim=1)


def _places(maps: torch.Tensor) -> torch.Tensor:
    """(N, PLACES, h, w) for maps (N, C, h, w)."""
    y, x = (torch.linspace(-1, 1, side, device=maps.device, dtype=maps.dtype) for side in maps.shape[-2:])
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, x * x, y * y, x * y]).expand(len(maps), -1, -1, -1)
