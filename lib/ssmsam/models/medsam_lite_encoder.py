"""LiteMedSAM (Ma et al.): a SAM for medical images with a small encoder, at 256 x 256 pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.sam_encoder import load_sam
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.models.tiny_vit import TinyVit
from ssmsam.models.weights import PACKAGED, entry, find_weights, weights_digest


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

    def level(self, stage: str, maps: torch.Tensor, *, pool: int) -> torch.Tensor:
        """A stage's map (B, c, h, w) as it is kept: means of ``pool`` x ``pool`` cells, projected."""
        pooled = F.avg_pool2d(maps, pool) if pool > 1 else maps
        return self.projections[stage].apply(pooled) if stage in self.projections else pooled


if TYPE_CHECKING:  # segment_anything imports torchvision, which costs seconds: only when a network is built
    from segment_anything.modeling import Sam

REDUCTION = PACKAGED / "medsam_lite_reduction.safetensors"
"""The projections that come with this package; the model card says how they were fitted."""
IMAGE = "image"
"""The output of the encoder, as reductions call it."""


@dataclass(frozen=True)
class Level:
    """A stage of the encoder that is handed out: its number, 0 being the first, and how many cells are averaged."""

    name: str
    number: int
    pool: int


LEVELS = (Level("stage2", 1, 2), Level("stage3", 2, 2), Level("stage4", 3, 2))
"""Fine cells (64 x 64) of the second stage and coarse ones (32 x 32) of the third and fourth. *Chosen on* the patients
on which it was measured: under a regression from five slices to the others of a volume it costs 0.3 points (MR) and
0.7 (CT) against all stages in full; the model card has the figures."""


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
        vit: TinyVit = sam.image_encoder
        config = vit.config
        self.sam = sam
        self.weights_sha256 = weights_sha256
        self.reduction = reduction
        self.detail = detail
        levels = LEVELS if reduction else ()
        own = detail.spec if detail else None
        self.spec = EncoderSpec(
            name=name,
            input_size=config.input_size,
            stride=config.stage_strides[-1],
            channels=config.out_channels,
            level_strides=(
                *(config.stage_strides[level.number] * level.pool for level in levels),
                *((*own.level_strides, own.stride) if own else ()),
            ),
            level_channels=(
                *(reduction.channels(level.name, config.widths[level.number]) for level in levels if reduction),
                *((*own.level_channels, own.channels) if own else ()),
            ),
            level_names=(
                *(level.name for level in levels),
                *(
                    (f"{own.name} {stride} {detail.weights_sha256[:16]}" for stride in (2, 4, 8))
                    if own and detail
                    else ()
                ),
            ),
            kept=f"image in {reduction.channels(IMAGE, 0)} by {reduction.digest[:16]}" if reduction else "",
            remade=len(own.level_strides) + 1 if own else 0,
            context=own.context if own else 0,
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
        size = self.spec.input_size
        if slices.ndim != 4 or tuple(slices.shape[1:]) != (3, size, size):
            raise ValueError(f"expected slices (B, 3, {size}, {size}), got {tuple(slices.shape)}")
        stages: dict[int, torch.Tensor] = {}
        alone = slices[:, 1:2].expand(-1, 3, -1, -1) if self.spec.context else slices
        image = self.sam.image_encoder(stretched(alone), keep=stages.__setitem__)
        if self.reduction is None:
            return {"image": image, "levels": []}
        levels = [self.reduction.level(level.name, stages[level.number], pool=level.pool) for level in LEVELS]
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
