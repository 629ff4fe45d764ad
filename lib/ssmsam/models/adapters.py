"""Adaptors: few parameters inside a frozen encoder, which learn what is new in an organ or a scanner.

For SAM those of Zhang et al. (WACV 2024), which are the explicit visual prompts of Liu et al. (CVPR 2023): what a
high-pass filter leaves of the image, and the patch embedding, are narrowed, joined, and added to the tokens before each
block. For encoders that are pyramids, the small one and LiteMedSAM's, the equivalent: after each stage the features and
the filtered image are narrowed, joined, widened again, and added. The published start is random; ours changes nothing
until it is trained.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.encoder import Adaptor, Embedding, Encoder
from ssmsam.models.medsam_lite_encoder import LiteMedSamEncoder
from ssmsam.models.sam_encoder import SamEncoder
from ssmsam.models.small_encoder import STAGES, SmallEncoder

LOW_SHARE = 0.25
"""Share of the spectrum, around its middle, that the high-pass filter takes away."""
NARROWING = 32
"""A SAM adaptor is this many times narrower than the tokens."""
NARROW = 8
"""Channels of an adaptor in a pyramid."""


def high_pass(slices: torch.Tensor) -> torch.Tensor:
    """What (B, C, H, W) are without their low frequencies: absolute values, the same shape."""
    height, width = slices.shape[-2:]
    half = int((height * width * LOW_SHARE) ** 0.5 // 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(slices, norm="forward"), dim=(-2, -1))
    keep = torch.ones(height, width, device=slices.device)
    keep[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
    filtered = torch.fft.ifft2(torch.fft.ifftshift(spectrum * keep, dim=(-2, -1)), norm="forward")
    return filtered.real.abs()


Base = TypeVar("Base", bound=Encoder)


class AdaptedEncoder(Encoder, Generic[Base]):
    """A frozen encoder with adaptors. Only :meth:`adaptors` train; ``base`` is shared, not copied."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = [base]  # not a submodule: its weights are neither ours to save nor to train
        self.spec = base.spec

    @property
    def base(self) -> Base:
        return self._base[0]

    @property
    def weights_sha256(self) -> str:  # type: ignore[override]
        """Of the encoder and its adaptors together: embeddings of another state are never taken for these."""
        sha = hashlib.sha256(self.base.weights_sha256.encode())
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    @abstractmethod
    def encode(self, slices: torch.Tensor) -> Embedding: ...

    def compress(self, embedding: Embedding) -> Embedding:
        return self.base.compress(embedding)

    def expand(self, kept: Embedding) -> Embedding:
        return self.base.expand(kept)


class AdaptedPyramid(AdaptedEncoder[Base]):
    """An encoder with an adaptor after some of its stages; ``stages`` maps their numbers to their channels."""

    def __init__(self, base: Base, stages: Mapping[int, int]) -> None:
        super().__init__(base)
        self.down = nn.ModuleDict({str(stage): nn.Conv2d(channels, NARROW, 1) for stage, channels in stages.items()})
        self.filtered = nn.ModuleDict({str(stage): nn.Conv2d(3, NARROW, 3, padding=1) for stage in stages})
        self.up = nn.ModuleDict(
            {str(stage): _zero(nn.Conv2d(NARROW, channels, 1)) for stage, channels in stages.items()}
        )

    def adaptor(self, slices: torch.Tensor) -> Adaptor:
        """What the adaptors add to the features of these slices."""
        edges = high_pass(slices)

        def adaptor(stage: int, features: torch.Tensor) -> torch.Tensor:
            name = str(stage)
            if name not in self.up:
                return features
            seen = self.filtered[name](F.adaptive_avg_pool2d(edges, (features.shape[-2], features.shape[-1])))
            return features + self.up[name](F.gelu(self.down[name](features) + seen))

        return adaptor


class AdaptedSmallEncoder(AdaptedPyramid[SmallEncoder]):
    """The small encoder with an adaptor after each stage."""

    def __init__(self, base: SmallEncoder) -> None:
        super().__init__(base, {stage: channels for stage, (_, channels) in enumerate(STAGES)})

    def encode(self, slices: torch.Tensor) -> Embedding:
        return self.base(slices, adaptor=self.adaptor(slices))


class AdaptedLiteMedSamEncoder(AdaptedPyramid[LiteMedSamEncoder]):
    """LiteMedSAM's encoder with an adaptor after each stage but the first: that one has a cell for every pixel, and a
    gradient through what follows it would need gigabytes."""

    def __init__(self, base: LiteMedSamEncoder) -> None:
        widths = base.sam.image_encoder.config.widths
        super().__init__(base, {stage: widths[stage] for stage in range(1, len(widths))})

    def encode(self, slices: torch.Tensor) -> Embedding:
        return self.base.encode(slices, adaptor=self.adaptor(slices))


class AdaptedSamEncoder(AdaptedEncoder[SamEncoder]):
    """SAM's encoder with an adaptor before each block; 1/32 of the tokens' width, as published."""

    def __init__(self, base: SamEncoder) -> None:
        super().__init__(base)
        vit = base.sam.image_encoder
        patch, width = vit.patch_embed.proj, vit.patch_embed.proj.out_channels
        narrow = width // NARROWING
        self.embedded = nn.Linear(width, narrow)
        self.filtered = nn.Conv2d(3, narrow, patch.kernel_size, stride=patch.stride)
        self.each = nn.ModuleList(nn.Linear(narrow, narrow) for _ in vit.blocks)
        self.shared = nn.Linear(narrow, width)
        for layer in (self.embedded, self.filtered, *self.each):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        _zero(self.shared)

    def encode(self, slices: torch.Tensor) -> Embedding:
        edges = self.filtered(high_pass(slices)).permute(0, 2, 3, 1)
        with torch.no_grad():
            patches = self.base.sam.image_encoder.patch_embed(slices)
        narrow = self.embedded(patches) + edges

        def adaptor(block: int, tokens: torch.Tensor) -> torch.Tensor:
            return tokens + self.shared(F.gelu(self.each[block](narrow)))

        return self.base.encode(slices, adaptor=adaptor)


def adapted_encoder(base: Encoder) -> AdaptedEncoder:
    """The encoder with adaptors that do nothing yet. Raises TypeError for an encoder that has no place for them."""
    if isinstance(base, SmallEncoder):
        return AdaptedSmallEncoder(base)
    if isinstance(base, LiteMedSamEncoder):
        return AdaptedLiteMedSamEncoder(base)
    if isinstance(base, SamEncoder):
        return AdaptedSamEncoder(base)
    raise TypeError(f"there are no adaptors for {type(base).__name__}: use the mode without them")


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
