"""TinyViT (Wu et al., ECCV 2022) without the strides of its stem, as LiteMedSAM has it, made for fast inference.

Maps are (B, H, W, C) throughout: convolutions of one cell are linear layers, and attention in windows needs no other
layout. Batch norms are folded into the layers before them when weights are loaded. What is wide inside is computed in
strips of rows or pieces of tokens that stay in the processor's cache, and attention is fused, with its bias laid out
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:  # segment_anything imports torchvision, which costs seconds: only when a network is built
    from segment_anything.modeling import Sam

BATCH_NORM_EPS = 1e-5
"""Of every batch norm in the published network: PyTorch's default."""
STRIP_BYTES = 5 * 2**19
"""How large a strip of a convolution's input may be. Measured on a processor with 1 MB of second-level cache: strips
halve the time of the first stage, and from 1 to 8 MB they differ by a tenth."""
PIECE_BYTES = 2**19
"""How large the inside of an MLP may be at once. Measured on the same processor: a third faster than in one piece."""

PROMPT_WIDTH = 256
"""Width of prompts and of the embedding in the published decoder."""
_ENCODER = "image_encoder."


@dataclass(frozen=True)
class TinyVitConfig:
    """The sizes of the network. The defaults are those of LiteMedSAM."""

    input_size: int = 256
    widths: tuple[int, ...] = (64, 128, 160, 320)
    """Channels of each stage. The first stage is made of convolutions, the others of attention in windows."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    """Side of the attention windows, in cells. Heads and window of the first stage are not used."""
    strides: tuple[int, ...] = (2, 2, 1)
    """From each stage to the next."""
    expansion: int = 4
    """How many times wider the inside of convolution blocks and of MLPs is."""
    out_channels: int = 256

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each stage."""
        return tuple(prod(self.strides[:number]) for number in range(len(self.widths)))


def in_pieces(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, widest: int) -> torch.Tensor:
    """A layer that treats every token of (B, H, W, C) by itself, on as many at once as :data:`PIECE_BYTES` allows.

    ``widest`` is how many channels a token has at its widest.
    """
    size = max(1, PIECE_BYTES // (widest * x.element_size()))
    return torch.cat([layer(piece) for piece in x.flatten(0, 2).split(size)]).unflatten(0, x.shape[:3])


class Around(nn.Conv2d):
    """A 3 x 3 convolution of maps (B, H, W, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Depthwise(Around):
    """The same of every channel by itself."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__(width, width, 3, stride=stride, padding=1, groups=width)


class Inverted(nn.Module):
    """Widen, look around in every channel, narrow again: what convolution blocks and transitions are made of."""

    def __init__(self, width: int, inner: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Linear(width, inner)
        self.conv2 = Depthwise(inner, stride)
        self.conv3 = nn.Linear(inner, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In strips of rows, each computed with a row more above and below."""
        height, columns = x.shape[1:3]
        row_bytes = columns * self.conv1.out_features * x.element_size()
        rows = max(1, STRIP_BYTES // row_bytes // self.stride) * self.stride
        return torch.cat([self._strip(x, top, min(top + rows, height)) for top in range(0, height, rows)], dim=1)

    def _strip(self, x: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        above, below = min(top, self.stride), min(x.shape[1] - bottom, 1)
        inner = self.conv2(F.gelu(self.conv1(x[:, top - above : bottom + below])))
        first = above // self.stride
        inner = inner[:, first : first + -(-(bottom - top) // self.stride)]
        return self.finish(self.conv3(F.gelu(inner)), x[:, top:bottom])

    def finish(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """What becomes of a strip, given what it was computed from."""
        return x


class ConvBlock(Inverted):
    """The block of the first stage: with a shortcut."""

    def finish(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        return F.gelu(x + shortcut)


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias for every distance along rows and columns."""

    bias: torch.Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("bias", torch.zeros(1, heads, window**2, window**2), persistent=False)

    def lay_out_bias(self) -> None:
        """To be called whenever ``attention_biases`` changed."""
        place = torch.arange(self.window, device=self.attention_biases.device)
        y, x = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
        apart = (y[:, None] - y).abs() * self.window + (x[:, None] - x).abs()
        self.bias = self.attention_biases.detach()[None, :, apart]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Windows that reach over the edge see zeros there, as in training."""
        batch, height, width, channels = x.shape
        side = self.window
        down, across = -(-height // side), -(-width // side)
        padded = F.pad(x, (0, 0, 0, across * side - width, 0, down * side - height))
        windows = padded.view(batch, down, side, across, side, channels).transpose(2, 3)
        tokens = windows.reshape(batch * down * across, side * side, channels)
        qkv = self.qkv(self.norm(tokens)).view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
        query, key, value = qkv.chunk(3, dim=-1)
        read = F.scaled_dot_product_attention(query, key, value, self.bias.to(query.dtype))
        read = self.proj(read.transpose(1, 2).reshape(tokens.shape))
        grid = read.view(batch, down, across, side, side, channels).transpose(2, 3)
        return grid.reshape(padded.shape)[:, :height, :width]


class Mlp(nn.Module):
    """Two layers on every token by itself."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.fc1.out_features
        return in_pieces(lambda piece: self.fc2(F.gelu(self.fc1(self.norm(piece)))), x, inner)


class AttentionBlock(nn.Module):
    """Attention in windows, a depthwise convolution that joins them, and an MLP."""

    def __init__(self, width: int, heads: int, window: int, inner: int) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = Depthwise(width)
        self.mlp = Mlp(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.local_conv(x + self.attn(x))
        return x + self.mlp(x)


class Stage(nn.Module):
    """Blocks of one width, and the way to the next stage."""

    def __init__(self, blocks: list[nn.Module], downsample: Inverted | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the stage says, and what goes on to the next one."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class Stem(nn.Module):
    """Every pixel by itself into the width of the first stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.seq = nn.Sequential(nn.Linear(3, width // 2), nn.GELU(), nn.Linear(width // 2, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_pieces(self.seq, x, self.width)


class TinyVit(nn.Module):
    """(B, 3, S, S) -> (B, out_channels, h, w), and what each stage says on the way.

    Modules have their published names: see :func:`for_inference`.
    """

    def __init__(self, config: TinyVitConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TinyVitConfig()
        self.img_size = config.input_size  # the name that decoders made for SAM's encoder look for
        self.patch_embed = Stem(config.widths[0])
        self.layers = nn.ModuleList(_stage(config, number) for number in range(len(config.widths)))
        self.neck = nn.Sequential(
            nn.Linear(config.widths[-1], config.out_channels, bias=False),
            nn.LayerNorm(config.out_channels, eps=1e-6),
            Around(config.out_channels, config.out_channels, 3, padding=1, bias=False),
            nn.LayerNorm(config.out_channels, eps=1e-6),
        )

    def prepare(self) -> None:
        """To be called after weights were loaded."""
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.lay_out_bias()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor, keep: Callable[[int, torch.Tensor], object] | None = None) -> torch.Tensor:
        """``keep(stage, features)`` gets the features (B, C, h, w) that each stage ends with, 0 being the first."""
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        for number, stage in enumerate(self.layers):
            said, x = stage(x)
            if keep is not None:
                keep(number, said.permute(0, 3, 1, 2))
        return self.neck(x).permute(0, 3, 1, 2)


def for_inference(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of :class:`TinyVit` from a published one.

    Each convolution ``name.c`` takes in its batch norm ``name.bn``, as ``name``, and convolutions of one cell become
    linear layers; the network then gives what it gave in evaluation mode. Raises RuntimeError where a batch norm is
    incomplete.
    """
    ready = {name: tensor for name, tensor in state.items() if ".bn." not in name and not name.endswith(".c.weight")}
    for name in (name.removesuffix(".c.weight") for name in state if name.endswith(".c.weight")):
        try:
            scale, shift, mean, variance = (state[f"{name}.bn.{part}"] for part in _BATCH_NORM)
        except KeyError as error:
            raise RuntimeError(f"the batch norm after {name}.c is incomplete: {error} is missing") from None
        factor = scale / torch.sqrt(variance + BATCH_NORM_EPS)
        ready[f"{name}.weight"] = state[f"{name}.c.weight"] * factor[:, None, None, None]
        ready[f"{name}.bias"] = shift - mean * factor
    return {name: tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor for name, tensor in ready.items()}


_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def _stage(config: TinyVitConfig, number: int) -> Stage:
    width, inner = config.widths[number], config.widths[number] * config.expansion
    blocks: list[nn.Module] = [
        AttentionBlock(width, config.heads[number], config.windows[number], inner)
        if number
        else ConvBlock(width, inner, width)
        for _ in range(config.depths[number])
    ]
    if number + 1 == len(config.widths):
        return Stage(blocks, None)
    wider = config.widths[number + 1]
    return Stage(blocks, Inverted(width, wider, wider, config.strides[number]))


def build_lite_medsam(config: TinyVitConfig | None = None) -> Sam:
    """An untrained network of this layout: our encoder before the prompt encoder and mask decoder of SAM."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = TinyVit(config)
    size = encoder.config.input_size
    side = size // encoder.config.stage_strides[-1]
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=PROMPT_WIDTH, image_embedding_size=(side, side), input_image_size=(size, size), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_WIDTH, mlp_dim=2048, num_heads=8),
            transformer_dim=PROMPT_WIDTH,
        ),
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    )


def take_published(sam: Sam, state: Mapping[str, torch.Tensor]) -> None:
    """Give a network of :func:`build_lite_medsam` the tensors of a published checkpoint: all of them and no others.

    Raises RuntimeError when they do not fit.
    """
    encoder = {name.removeprefix(_ENCODER): tensor for name, tensor in state.items() if name.startswith(_ENCODER)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(_ENCODER)}
    folded = {_ENCODER + name: tensor for name, tensor in for_inference(encoder).items()}
    sam.load_state_dict({**rest, **folded}, strict=True, assign=True)
    sam.image_encoder.prepare()
