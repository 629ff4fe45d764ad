"""What every image encoder promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

if TYPE_CHECKING:
    from typing import Self


class Embedding(TypedDict):
    """What an encoder makes of B slices, float32.

    Attributes:
        image: (B, channels, h, w) with h = w = input_size / stride; rows, then columns.
        levels: Further maps (B, c, h_l, w_l) that cover the same input.
    """

    image: torch.Tensor
    levels: list[torch.Tensor]


def take(embedding: Embedding, index: torch.Tensor) -> Embedding:
    """The embeddings of some slices of a batch, repeated where ``index`` repeats them."""
    return {"image": embedding["image"][index], "levels": [level[index] for level in embedding["levels"]]}


class Batch:
    """What a frozen dataclass of tensors can do whose first axes count the same things."""

    def __getitem__(self, index: torch.Tensor | slice) -> Self:
        """Some of them, in the order of ``index``."""
        return type(self)(**{name: value[index] for name, value in vars(self).items()})

    @classmethod
    def cat(cls, several: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(**{name: torch.cat([getattr(one, name) for one in several]) for name in vars(several[0])})


@dataclass(frozen=True)
class EncoderSpec:
    """What a decoder, the store and the documentation need to know of an encoder."""

    name: str
    input_size: int
    """Side of the square input in pixels."""
    stride: int
    """Input pixels per cell of ``image``."""
    channels: int
    level_strides: tuple[int, ...] = ()
    level_channels: tuple[int, ...] = ()
    level_names: tuple[str, ...] = ()
    """What tells the levels from others that the same weights could give: part of every cache key."""
    kept: str = ""
    """How :meth:`Encoder.compress` changes ``image``, if it does: part of every cache key."""
    remade: int = 0
    """The last so many levels are not kept on disk: :meth:`Encoder.remake` takes a moment, and they take much room."""
    context: int = 0
    """Neighbouring slices read on each side: 0 repeats the slice in all three channels, 1 reads (k-1, k, k+1)."""
    bfloat16: bool = False
    """Whether masks were measured to stay the same when the encoder computes in bfloat16."""
    licence: str = ""


class Encoder(nn.Module, ABC):
    """An image encoder with frozen weights. It sees intensities in [0, 1] by the volume's intensity recipe.

    Example:
        >>> from ssmsam.models.registry import load_encoder
        >>> encoder = load_encoder("small")
        >>> embedding = encoder.encode(torch.zeros(2, 3, 256, 256))
        >>> tuple(embedding["image"].shape), [tuple(level.shape) for level in embedding["levels"]]
        ((2, 128, 32, 32), [(2, 16, 128, 128), (2, 48, 64, 64)])
    """

    spec: EncoderSpec
    weights_sha256: str
    """sha256 of the weights' file, or of the state for weights that never were one: part of every cache key."""

    @abstractmethod
    def encode(self, slices: torch.Tensor) -> Embedding:
        """Encode slices.

        Args:
            slices: (B, 3, input_size, input_size) float in [0, 1]; rows, then columns. The channels are the slice
                three times, or with its neighbours where ``spec.context`` says so.

        Returns:
            The embedding of the B slices.

        Raises:
            ValueError: Slices of another shape.
        """

    def expect(self, slices: torch.Tensor) -> None:
        """Raises ValueError for what :meth:`encode` does not take."""
        expected = (3, self.spec.input_size, self.spec.input_size)
        if slices.ndim != 4 or tuple(slices.shape[1:]) != expected:
            raise ValueError(f"expected slices (B, {', '.join(map(str, expected))}), got {tuple(slices.shape)}")

    def remake(self, slices: torch.Tensor) -> list[torch.Tensor]:
        """The last ``spec.remade`` levels of what :meth:`encode` gives for the same slices (B, 3, S, S)."""
        return []

    def compress(self, embedding: Embedding) -> Embedding:
        """What of an embedding is kept in memory and on disk. Everything, unless an encoder knows better."""
        return embedding

    def expand(self, kept: Embedding) -> Embedding:
        """The embedding that decoders read, from what :meth:`compress` kept."""
        return kept


def use_bfloat16(spec: EncoderSpec, device: torch.device) -> bool:
    """Whether to compute in bfloat16 when nobody says otherwise.

    That is so where it was found to leave the encoder's masks as they are (``benchmark.py precision``), and where it is
    faster: on a processor that has instructions for it. On others it would be slower.
    """
    return spec.bfloat16 and device.type == "cpu" and has_bfloat16()


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    try:
        found = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch does not tell
        return False
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
