"""SSM-SAM's mask attention on further maps of the encoder, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.self_sampling import MaskAttention, SelfSamplingConfig, SelfSamplingDecoder


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


class LevelledDecoder(SelfSamplingDecoder):
    """A :class:`SelfSamplingDecoder` whose mask attention reads further maps of ``channels`` each, the coarsest last.

    They are the last of ``level_channels`` in the encoder's spec. Self-sampling reads one map only, as published.
    """

    def __init__(
        self,
        inner: TargetDecoder,
        *,
        width: int,
        channels: Sequence[int],
        config: SelfSamplingConfig | None = None,
    ) -> None:
        super().__init__(inner, width=width, config=config)
        self.levels = LevelAttention(channels=channels, width=width)

    def attended(self, embedding: Embedding, masks: torch.Tensor) -> torch.Tensor:
        return super().attended(embedding, masks) + self.levels(embedding["levels"], masks, self.mask_attention)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        found = super().groups()
        if hasattr(self, "levels"):  # the base class counts its groups before there are any
            found["mask_attention"] += self.levels.parameters()
        return found

    def begin_with(self, weights: Mapping[str, Any]) -> None:
        """Take the weights of a decoder that knows no levels; they begin without effect."""
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("levels.")}
        self.load_state_dict({**own, **weights})
