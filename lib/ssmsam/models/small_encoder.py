"""Our own compact encoder: convolutions where detail is, attention where context is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.layers import doubled
from ssmsam.models.weights import tensors_of

STAGES = ((2, 32), (4, 64), (8, 128), (16, 256))
"""Stride and channels of each stage of the pyramid."""

SPEC = EncoderSpec(
    name="small",
    input_size=256,
    stride=8,
    channels=128,
    level_strides=(2, 4),
    level_channels=(16, 48),
    context=1,
    licence="Apache-2.0 code; weights for research, see the model card",
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, same width and resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


class ContextBlock(nn.Module):
    """Self-attention over all cells of a map; a depthwise convolution tells cells apart by their surroundings."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, height, columns = x.shape
        tokens = (x + self.position(x)).flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm1(tokens)).view(batch, -1, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(read.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(batch, width, height, columns)


def _down(width_in: int, width_out: int) -> nn.Sequential:
    """Half the resolution."""
    conv = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out), nn.ReLU())


def _smooth(width: int) -> nn.Sequential:
    """Mends the seams of upsampling after two levels were added."""
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class SmallEncoder(Encoder):
    """Residual pyramid (strides 2, 4, 8, 16), two context blocks at stride 16, and a top-down path back to stride 2.

    After feature pyramids (Lin et al., CVPR 2017), with attention at the coarsest level. Reads three neighbouring
    slices (k-1, k, k+1) as channels. Fully convolutional: any multiple of 16 works as input size, which training on
    crops uses; :meth:`encode` is for the declared size.
    """

    spec = SPEC

    def __init__(self, *, weights_sha256: str = "random") -> None:
        super().__init__()
        fine, middle = SPEC.level_channels
        self.weights_sha256 = weights_sha256
        self.stem = nn.Sequential(_down(3, 32), ResidualBlock(32))
        self.stage4 = nn.Sequential(_down(32, 64), ResidualBlock(64), ResidualBlock(64))
        self.stage8 = nn.Sequential(_down(64, 128), ResidualBlock(128), ResidualBlock(128))
        self.stage16 = nn.Sequential(_down(128, 256), ResidualBlock(256), ContextBlock(256), ContextBlock(256))
        self.lateral16 = nn.Conv2d(256, SPEC.channels, 1)
        self.lateral8 = nn.Conv2d(128, SPEC.channels, 1)
        self.lateral4 = nn.Conv2d(64, middle, 1)
        self.lateral2 = nn.Conv2d(32, fine, 1)
        self.narrow4 = nn.Conv2d(SPEC.channels, middle, 1)
        self.narrow2 = nn.Conv2d(middle, fine, 1)
        self.smooth8 = _smooth(SPEC.channels)
        self.smooth4 = _smooth(middle)
        self.smooth2 = _smooth(fine)

    def forward(self, slices: torch.Tensor) -> Embedding:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> image at stride 8, levels at strides 2 and 4."""
        at2 = self.stem((slices - 0.4) / 0.3)
        at4 = self.stage4(at2)
        at8 = self.stage8(at4)
        at16 = self.stage16(at8)
        image = self.smooth8(self.lateral8(at8) + doubled(self.lateral16(at16)))
        level4 = self.smooth4(self.lateral4(at4) + doubled(self.narrow4(image)))
        level2 = self.smooth2(self.lateral2(at2) + doubled(self.narrow2(level4)))
        return {"image": image, "levels": [level2, level4]}

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.expect(slices)
        return self(slices)

    @classmethod
    def from_file(cls, path: Path) -> SmallEncoder:
        """The shipped weights, or any file that ``ssmsam train`` wrote; frozen, in evaluation mode.

        Raises:
            ValueError: A file without an encoder of this model.
        """
        encoder = cls(weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        encoder.load_state_dict(part_of(load_file(str(path)), "encoder"))
        return encoder.eval().requires_grad_(False)


def part_of(state: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The tensors of one part ("encoder", "prompting") of the small model's file, as float32."""
    found = tensors_of(state, part)
    if not found:
        raise ValueError(f"no tensors of the part {part!r}: is this a file of the small model?")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
