"""LiteMedSAM's layout as it is published, spelled out: batch norms by themselves, attention with an explicit softmax.

Random state dicts of any size, and what the image encoder gives with them. Slow, and written only to be obvious.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F

from ssmsam.models.tiny_vit import TinyVitConfig, build_lite_medsam

TINY = TinyVitConfig(
    input_size=64, widths=(8, 16, 32, 32), depths=(1, 2, 1, 1), heads=(1, 2, 4, 4), windows=(7, 7, 14, 7)
)
"""Windows reach over the edge in every stage, as they do at full size."""

State = dict[str, torch.Tensor]


def random_checkpoint(config: TinyVitConfig = TINY, *, seed: int = 0) -> State:
    """A whole checkpoint: ``image_encoder.*``, and random parts of SAM's classes for it."""
    torch.manual_seed(seed)
    sam = build_lite_medsam(config)
    rest = {name: t for name, t in sam.state_dict().items() if not name.startswith("image_encoder.")}
    return rest | {f"image_encoder.{name}": tensor for name, tensor in random_encoder(config, seed=seed).items()}


def random_encoder(config: TinyVitConfig = TINY, *, seed: int = 0) -> State:
    """The image encoder's tensors, at scales at which signals neither die nor blow up."""
    make = _Maker(torch.Generator().manual_seed(seed))
    stem = config.widths[0]
    make.convolution("patch_embed.seq.0", 3, stem // 2)
    make.convolution("patch_embed.seq.2", stem // 2, stem)
    for number, width in enumerate(config.widths):
        for block in range(config.depths[number]):
            name, inner = f"layers.{number}.blocks.{block}", width * config.expansion
            if number == 0:
                make.inverted(name, width, inner, width)
                continue
            make.norm(f"{name}.attn.norm", width)
            make.linear(f"{name}.attn.qkv", width, 3 * width)
            make.linear(f"{name}.attn.proj", width, width)
            make.state[f"{name}.attn.attention_biases"] = make.normal(config.heads[number], config.windows[number] ** 2)
            make.norm(f"{name}.mlp.norm", width)
            make.linear(f"{name}.mlp.fc1", width, inner)
            make.linear(f"{name}.mlp.fc2", inner, width)
            make.convolution(f"{name}.local_conv", width, width, side=3, grouped=True)
        if number + 1 < len(config.widths):
            wider = config.widths[number + 1]
            make.inverted(f"layers.{number}.downsample", width, wider, wider)
    out = config.out_channels
    make.state["neck.0.weight"] = make.normal(out, config.widths[-1], 1, 1) / config.widths[-1] ** 0.5
    make.norm("neck.1", out)
    make.state["neck.2.weight"] = make.normal(out, out, 3, 3) / (9 * out) ** 0.5
    make.norm("neck.3", out)
    return make.state


def published_forward(state: State, x: torch.Tensor, config: TinyVitConfig = TINY) -> torch.Tensor:
    """(B, 3, S, S) -> (B, out_channels, h, w)."""
    x = _conv(state, "patch_embed.seq.2", F.gelu(_conv(state, "patch_embed.seq.0", x)))
    for number in range(len(config.widths)):
        for block in range(config.depths[number]):
            name = f"layers.{number}.blocks.{block}"
            if number == 0:
                x = F.gelu(_inverted(state, name, x) + x)
                continue
            tokens = x.permute(0, 2, 3, 1)
            tokens = tokens + _attention(state, f"{name}.attn", tokens, config.heads[number], config.windows[number])
            tokens = _conv(state, f"{name}.local_conv", tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            inner = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.mlp.norm", tokens)))
            x = (tokens + _linear(state, f"{name}.mlp.fc2", inner)).permute(0, 3, 1, 2)
        if number + 1 < len(config.widths):
            x = _inverted(state, f"layers.{number}.downsample", x, stride=config.strides[number])
    x = _map_norm(state, "neck.1", F.conv2d(x, state["neck.0.weight"]))
    return _map_norm(state, "neck.3", F.conv2d(x, state["neck.2.weight"], padding=1))


class _Maker:
    """Random tensors under published names."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.state: State = {}

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def positive(self, *shape: int) -> torch.Tensor:
        return 0.5 + torch.rand(shape, generator=self.generator)

    def linear(self, name: str, width: int, out: int) -> None:
        self.state[f"{name}.weight"] = self.normal(out, width) / width**0.5
        self.state[f"{name}.bias"] = 0.1 * self.normal(out)

    def norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = self.positive(width)
        self.state[f"{name}.bias"] = 0.1 * self.normal(width)

    def convolution(self, name: str, width: int, out: int, *, side: int = 1, grouped: bool = False) -> None:
        read = 1 if grouped else width
        self.state[f"{name}.c.weight"] = self.normal(out, read, side, side) / (read * side**2) ** 0.5
        self.norm(f"{name}.bn", out)
        self.state[f"{name}.bn.running_mean"] = 0.1 * self.normal(out)
        self.state[f"{name}.bn.running_var"] = self.positive(out)
        self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)

    def inverted(self, name: str, width: int, inner: int, out: int) -> None:
        self.convolution(f"{name}.conv1", width, inner)
        self.convolution(f"{name}.conv2", inner, inner, side=3, grouped=True)
        self.convolution(f"{name}.conv3", inner, out)


def _conv(state: State, name: str, x: torch.Tensor, *, stride: int = 1) -> torch.Tensor:
    weight = state[f"{name}.c.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
    mean, variance, scale, shift = (state[f"{name}.bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, variance, scale, shift)


def _inverted(state: State, name: str, x: torch.Tensor, *, stride: int = 1) -> torch.Tensor:
    inner = F.gelu(_conv(state, f"{name}.conv2", F.gelu(_conv(state, f"{name}.conv1", x)), stride=stride))
    return _conv(state, f"{name}.conv3", inner)


def _linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _map_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    scale, shift = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean) / torch.sqrt(variance + 1e-6) * scale + shift


def _attention(state: State, name: str, x: torch.Tensor, heads: int, side: int) -> torch.Tensor:
    """Tokens (B, H, W, C), window after window."""
    _, height, width, channels = x.shape
    down, across = -(-height // side), -(-width // side)
    padded = F.pad(x, (0, 0, 0, across * side - width, 0, down * side - height))
    answer = torch.empty_like(padded)
    places = list(product(range(side), repeat=2))
    apart = [[abs(a[0] - b[0]) * side + abs(a[1] - b[1]) for b in places] for a in places]
    bias = state[f"{name}.attention_biases"][:, torch.tensor(apart)]
    for row, column in product(range(down), range(across)):
        here = (slice(None), slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        tokens = _norm(state, f"{name}.norm", padded[here].flatten(1, 2))
        each = _linear(state, f"{name}.qkv", tokens).unflatten(2, (heads, 3, channels // heads))
        query, key, value = each.permute(3, 0, 2, 1, 4)
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)
        read = (weights @ value).transpose(1, 2).flatten(2)
        answer[here] = _linear(state, f"{name}.proj", read).unflatten(1, (side, side))
    return answer[:, :height, :width]
