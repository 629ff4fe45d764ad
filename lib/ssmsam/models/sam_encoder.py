"""The image encoders of Segment Anything and of networks with its layout: MedSAM, and LiteMedSAM (Ma et al.), a SAM for
medical images with a small encoder, at 256 x 256 pixels."""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.models.tiny_vit import build_lite_medsam, take_published
from ssmsam.models.weights import PACKAGED, CorruptWeights, entry, find_weights, weights_digest

if TYPE_CHECKING:  # it imports torchvision, which costs seconds: only when a network is built
    from segment_anything.modeling import Sam

BIAS_CELLS = 2**22
"""Elements of the bias that are made at once, 16 MB, or one head where that alone is more. All heads of SAM at once
need 800 MB: the operating system then spends more time handing out memory than the processor spends computing."""


class HeadwiseAttention(nn.Module):
    """The weights of a ``segment_anything`` attention module, computed exactly but in little memory.

    Takes over the parameters of ``stock`` under the same names, so that state dicts stay the same.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.num_heads: int = stock.num_heads
        self.qkv = stock.qkv
        self.proj = stock.proj
        self.use_rel_pos: bool = stock.use_rel_pos
        if self.use_rel_pos:
            self.rel_pos_h = stock.rel_pos_h
            self.rel_pos_w = stock.rel_pos_w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        tokens = height * width
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.flatten(1, 2).unbind(0)  # each (B * heads, tokens, channels / heads)
        step = max(1, BIAS_CELLS // tokens**2)
        scratch = torch.empty(step, height, width, height, width, dtype=x.dtype, device=x.device)
        parts = []
        for start in range(0, len(query), step):
            q, k, v = (part[start : start + step, None] for part in (query, key, value))
            bias = self._bias(q[:, 0], scratch[: len(q)]) if self.use_rel_pos else None
            parts.append(F.scaled_dot_product_attention(q, k, v, bias)[:, 0])
        merged = torch.cat(parts).view(batch, self.num_heads, tokens, -1).transpose(1, 2)
        return self.proj(merged.reshape(batch, height, width, channels))

    def _bias(self, query: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        """Queries (N, tokens, c) -> (N, 1, tokens, tokens): for each query, row term plus column term of the key.

        Written into ``scratch`` (N, H, W, H, W), memory that is used again and again, unless gradients need it.
        """
        height, width = scratch.shape[1:3]
        grid = query.view(-1, height, width, query.shape[-1])
        rows = torch.einsum("nhwc,hkc->nhwk", grid, relative(self.rel_pos_h, height))[..., :, None]
        columns = torch.einsum("nhwc,wkc->nhwk", grid, relative(self.rel_pos_w, width))[..., None, :]
        bias = rows + columns if rows.requires_grad else torch.add(rows, columns, out=scratch)
        return bias.reshape(len(query), 1, height * width, height * width)


def relative(table: torch.Tensor, size: int) -> torch.Tensor:
    """Vectors (2 * size - 1, c) by distance -> (size, size, c) by the positions of query and key along one axis."""
    if len(table) != 2 * size - 1:
        raise ValueError(f"these weights are for {(len(table) + 1) // 2} tokens along an axis, got {size}")
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


logger = logging.getLogger(__name__)

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

UNIT_INTENSITIES = frozenset({"medsam_vit_b"})
"""Networks that were trained on intensities in [0, 1] as they are, without SAM's mean and standard deviation."""

_loaded: WeakValueDictionary[tuple, Sam] = WeakValueDictionary()
_loading = threading.Lock()


def build_sam(architecture: str) -> Sam:
    """An untrained SAM (``vit_b``, ``vit_l`` or ``vit_h``) with the memory-saving attention, in evaluation mode."""
    from segment_anything import sam_model_registry

    if architecture not in ("vit_b", "vit_l", "vit_h"):
        raise ValueError(f"unknown SAM architecture {architecture!r}; valid: vit_b, vit_l, vit_h")
    return use_headwise_attention(sam_model_registry[architecture]())


def use_headwise_attention(sam: Sam) -> Sam:
    """Replace the attention of every block of the image encoder, in place. The answer stays the same."""
    for block in sam.image_encoder.blocks:
        block.attn = HeadwiseAttention(block.attn)
    return sam


def load_sam(name: str, path: Path, *, device: str = "cpu") -> Sam:
    """SAM with image encoder, prompt encoder and mask decoder from a checkpoint of the official layout.

    The same file gives the same object for as long as somebody holds it, so that the image encoder and the prompt
    decoder read it once. Raises :class:`CorruptWeights` when the file is not such a checkpoint.
    """
    status = path.stat()
    key = (name, path.resolve(), status.st_size, status.st_mtime_ns, str(device))
    with _loading:
        sam = _loaded.get(key)
        if sam is None:
            sam = _loaded[key] = _load(name, path).to(device)
    return sam


def _load(name: str, path: Path) -> Sam:
    """Build on the meta device, where no time goes into random numbers, and take the tensors of the file."""
    architecture = entry(name).architecture
    lite = architecture == "lite_medsam"
    with torch.device("meta"):
        sam = build_lite_medsam() if lite else build_sam(architecture)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if lite:
            take_published(sam, state)
        else:
            sam.load_state_dict(state, strict=True, assign=True)
    except PermissionError:
        raise
    except (OSError, RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise CorruptWeights(
            f"{path} is not a {name} checkpoint of the official layout (a plain state dict of image_encoder, "
            f"prompt_encoder and mask_decoder). A training checkpoint must be reduced to that first. {error}"
        ) from error
    # the only tensors that are not in a state dict, and so are still on the meta device
    sam.pixel_mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    sam.pixel_std = torch.tensor(PIXEL_STD).view(3, 1, 1)
    logger.info("loaded weights name=%s file=%s", name, path)
    return sam.float().eval().requires_grad_(False)


class SamEncoder(Encoder):
    """SAM's image encoder (Kirillov et al., 2023). The whole network is at ``.sam``: the prompt decoder shares it."""

    def __init__(self, sam: Sam, *, name: str, weights_sha256: str) -> None:
        super().__init__()
        vit = sam.image_encoder
        self.sam = sam
        self.weights_sha256 = weights_sha256
        self.spec = EncoderSpec(
            name=name,
            input_size=vit.img_size,
            stride=vit.patch_embed.proj.stride[0],
            channels=vit.neck[0].out_channels,
            licence=entry(name).licence,
        )

    @classmethod
    def from_file(cls, path: Path, *, name: str = "sam_vit_b", device: str = "cpu") -> SamEncoder:
        """Load a checkpoint of the official layout; frozen. Raises :class:`CorruptWeights`."""
        return cls(load_sam(name, path, device=device), name=name, weights_sha256=weights_digest(path))

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.expect(slices)
        vit = self.sam.image_encoder
        tokens = vit.patch_embed(self._standardised(slices))
        if vit.pos_embed is not None:
            tokens = tokens + vit.pos_embed
        for block in vit.blocks:
            tokens = block(tokens)
        return {"image": vit.neck(tokens.permute(0, 3, 1, 2)), "levels": []}

    def _standardised(self, slices: torch.Tensor) -> torch.Tensor:
        if self.spec.name in UNIT_INTENSITIES:
            return slices
        return (slices * 255 - self.sam.pixel_mean) / self.sam.pixel_std


@dataclass(frozen=True, eq=False)
class Projection:
    """The principal axes of a map's channels: ``mean`` (c,) and orthonormal ``basis`` (c, k)."""

    mean: torch.Tensor
    basis: torch.Tensor

    @property
    def channels(self) -> int:
        """What is left of the channels."""
        return self.basis.shape[1]

    def apply(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, c, h, w) -> (B, k, h, w)."""
        basis, mean = self.basis.to(maps.device), self.mean.to(maps.device)
        with torch.autocast(maps.device.type, enabled=False):  # differences from the mean need all digits
            return torch.einsum("bchw,ck->bkhw", maps.float() - mean[:, None, None], basis)

    def invert(self, kept: torch.Tensor) -> torch.Tensor:
        """(B, k, h, w) -> (B, c, h, w), as near as the projection allows."""
        basis, mean = self.basis.to(kept), self.mean.to(kept)
        return torch.einsum("bkhw,ck->bchw", kept, basis) + mean[:, None, None]


@dataclass(frozen=True, eq=False)
class Reduction:
    """How the maps of an encoder are kept, by the names of its stages; ``image`` is its output.

    A stage without a projection keeps its channels.
    """

    projections: Mapping[str, Projection]
    digest: str
    """sha256 of the file: part of every cache key."""

    @classmethod
    def from_file(cls, path: Path) -> Reduction:
        """From safetensors: ``STAGE.mean`` and ``STAGE.basis`` of every projection."""
        tensors = load_file(str(path))
        names = sorted({name.rpartition(".")[0] for name in tensors})
        found = {name: Projection(tensors[f"{name}.mean"], tensors[f"{name}.basis"]) for name in names}
        return cls(found, hashlib.sha256(path.read_bytes()).hexdigest())

    def channels(self, stage: str, full: int) -> int:
        """Channels that are kept of a stage that has ``full``."""
        return self.projections[stage].channels if stage in self.projections else full

    def level(self, stage: str, maps: torch.Tensor) -> torch.Tensor:
        """A stage's map (B, c, h, w) as it is kept: means of :data:`POOL` x POOL cells, projected."""
        pooled = F.avg_pool2d(maps, POOL)
        return self.projections[stage].apply(pooled) if stage in self.projections else pooled


REDUCTION = PACKAGED / "medsam_lite_reduction.safetensors"
"""The projections that come with this package; the model card says how they were fitted."""
IMAGE = "image"
"""The output of the encoder, as reductions call it."""


LEVELS = {"stage2": 1, "stage3": 2, "stage4": 3}
"""The stages of the encoder that are handed out, and their numbers, 0 being the first. Fine cells (64 x 64) of the
second stage and coarse ones (32 x 32) of the third and fourth. *Chosen on* the patients on which it was measured: under
a regression from five slices to the others of a volume it costs 0.3 points (MR) and 0.7 (CT) against all stages in
full; the model card has the figures."""
POOL = 2
"""As many cells along each axis are averaged in them."""


class LiteMedSamEncoder(Encoder):
    """The image encoder of LiteMedSAM, distilled from MedSAM (Ma et al., 2024) into TinyViT (Wu et al., ECCV 2022).

    The whole network is at ``.sam``, for the prompt decoder to share.

    With a ``reduction`` the stages :data:`LEVELS` are handed out too, reduced by it, and embeddings are kept with
    fewer channels; without one there are no levels, and everything is kept. With ``detail`` its pyramid follows, the
    levels at the strides 2 and 4 and its output at stride 8: what this encoder's cells are too coarse for.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        name: str = "medsam_lite",
        weights_sha256: str,
        reduction: Reduction | None = None,
        detail: SmallEncoder | None = None,
    ) -> None:
        super().__init__()
        config = sam.image_encoder.config
        self.sam = sam
        self.weights_sha256 = weights_sha256
        self.reduction = reduction
        self.detail = detail
        levels: list[tuple[str, int, int]] = []
        if reduction:
            strides, widths = config.stage_strides, config.widths
            levels += [(name, POOL * strides[n], reduction.channels(name, widths[n])) for name, n in LEVELS.items()]
        if detail:
            own = detail.spec
            pyramid = zip((*own.level_strides, own.stride), (*own.level_channels, own.channels), strict=True)
            levels += [
                (f"{own.name} {stride} {detail.weights_sha256[:16]}", stride, width) for stride, width in pyramid
            ]
        self.spec = EncoderSpec(
            name=name,
            input_size=config.input_size,
            stride=config.stage_strides[-1],
            channels=config.out_channels,
            level_names=tuple(level for level, _, _ in levels),
            level_strides=tuple(stride for _, stride, _ in levels),
            level_channels=tuple(width for _, _, width in levels),
            kept=f"image in {reduction.channels(IMAGE, 0)} by {reduction.digest[:16]}" if reduction else "",
            remade=len(detail.spec.level_strides) + 1 if detail else 0,
            context=detail.spec.context if detail else 0,
            bfloat16=True,
            licence=entry(name).licence,
        )

    @classmethod
    def from_file(cls, path: Path, *, name: str = "medsam_lite", device: str = "cpu") -> LiteMedSamEncoder:
        """Load a checkpoint of the published layout; frozen. Raises :class:`CorruptWeights`."""
        sam, digest = load_sam(name, path, device=device), weights_digest(path)
        detail = SmallEncoder.from_file(find_weights("small")).to(device)
        return cls(sam, name=name, weights_sha256=digest, reduction=Reduction.from_file(REDUCTION), detail=detail)

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.expect(slices)
        stages: dict[int, torch.Tensor] = {}
        alone = slices[:, 1:2].expand(-1, 3, -1, -1) if self.spec.context else slices
        image = self.sam.image_encoder(stretched(alone), keep=stages.__setitem__)
        if self.reduction is None:
            return {"image": image, "levels": []}
        levels = [self.reduction.level(name, stages[number]) for name, number in LEVELS.items()]
        return {"image": image, "levels": [*levels, *self.remake(slices)]}

    def remake(self, slices: torch.Tensor) -> list[torch.Tensor]:
        if self.detail is None:
            return []
        with torch.autocast(slices.device.type, enabled=False):  # its masks were never measured in less precision
            pyramid = self.detail.encode(slices.float())
        return [*pyramid["levels"], pyramid["image"]]

    def compress(self, embedding: Embedding) -> Embedding:
        if self.reduction is None:
            return embedding
        return {"image": self.reduction.projections[IMAGE].apply(embedding["image"]), "levels": embedding["levels"]}

    def expand(self, kept: Embedding) -> Embedding:
        if self.reduction is None:
            return kept
        return {"image": self.reduction.projections[IMAGE].invert(kept["image"]), "levels": kept["levels"]}


def stretched(slices: torch.Tensor) -> torch.Tensor:
    """Slices (B, 3, S, S) in [0, 1] as this network was trained on them: the darkest pixel 0, the brightest 1.

    The padding to the right and below a slice is not part of it, and stays 0. A slice of one value becomes 0.
    """
    return torch.stack([_stretched(one) for one in slices])


def _stretched(one: torch.Tensor) -> torch.Tensor:
    drawn = one.amax(0) > 0
    if not drawn.any():
        return one
    rows, columns = (int(drawn.any(axis).nonzero().max()) + 1 for axis in (1, 0))
    inside = one[:, :rows, :columns]
    low, high = inside.min(), inside.max()
    return ((one - low) / (high - low).clamp(min=1e-8)).clamp(0, 1)
