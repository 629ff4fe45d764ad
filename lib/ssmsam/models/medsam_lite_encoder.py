"""LiteMedSAM (Ma et al.): a SAM for medical images with a small encoder, at 256 x 256 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ssmsam.models.encoder import Adaptor, Embedding, Encoder, EncoderSpec
from ssmsam.models.reduction import Reduction
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.models.tiny_vit import TinyVit, TinyVitConfig, for_inference
from ssmsam.models.weights import PACKAGED, entry, find_weights, weights_digest

if TYPE_CHECKING:  # segment_anything imports torchvision, which costs seconds: only when a network is built
    from segment_anything.modeling import Sam

PROMPT_WIDTH = 256
"""Width of prompts and of the embedding in the published decoder."""
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
"""Fine cells (64 x 64) of the second stage and coarse ones (32 x 32) of the third and fourth. Chosen on the patients
on which it was measured: under a regression from five slices to the others of a volume it costs 0.3 points (MR) and
0.7 (CT) against all stages in full; the model card has the figures."""

_ENCODER = "image_encoder."


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


class LiteMedSamEncoder(Encoder):
    """The image encoder of LiteMedSAM. The whole network is at ``.sam``, for the prompt decoder to share.

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
        from ssmsam.models.sam_encoder import load_sam

        sam, digest = load_sam(name, path, device=device), weights_digest(path)
        detail = SmallEncoder.from_file(find_weights("small")).to(device)
        return cls(sam, name=name, weights_sha256=digest, reduction=Reduction.from_file(REDUCTION), detail=detail)

    def unreduced(self) -> LiteMedSamEncoder:
        """The same network, keeping its output whole, as its makers' decoder reads it, and no levels."""
        return LiteMedSamEncoder(self.sam, name=self.spec.name, weights_sha256=self.weights_sha256)

    def encode(self, slices: torch.Tensor, *, adaptor: Adaptor | None = None) -> Embedding:
        """``adaptor`` may change what each of the stages 0 to 3 says."""
        size = self.spec.input_size
        if slices.ndim != 4 or tuple(slices.shape[1:]) != (3, size, size):
            raise ValueError(f"expected slices (B, 3, {size}, {size}), got {tuple(slices.shape)}")
        stages: dict[int, torch.Tensor] = {}
        alone = slices[:, 1:2].expand(-1, 3, -1, -1) if self.spec.context else slices
        image = self.sam.image_encoder(stretched(alone), keep=stages.__setitem__, adaptor=adaptor)
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
