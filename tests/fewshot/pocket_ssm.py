"""SSM-SAM around the pocket decoder, with modules that say something."""

from __future__ import annotations

import torch
from planted import PocketDecoder

from ssmsam.models.self_sampling import SelfSamplingConfig, SelfSamplingDecoder


def pocket_ssm(*, config: SelfSamplingConfig | None = None, spoken: bool = True, seed: int = 0) -> SelfSamplingDecoder:
    """Random weights; ``spoken`` ones also where training begins with zeros."""
    decoder = SelfSamplingDecoder(PocketDecoder(seed), width=128, config=config)
    if spoken:
        torch.manual_seed(seed + 1)
        for module in (decoder.sampling, decoder.mask_attention):
            torch.nn.init.normal_(module.out.weight, std=0.1)
    return decoder.eval().requires_grad_(False)
