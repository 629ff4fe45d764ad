"""The prompted model under test: the same functions that answer the server's requests, called without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.cli.annotator import Click
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.interactive.request import InvalidPrompt, PromptRequest
from ssmsam.interactive.session import SegmentationState, segment_2d, segment_3d
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.models.registry import (
    choose_encoder,
    decoder_weights,
    default_encoder,
    load_decoder,
    load_encoder,
    load_ssm_decoder,
    load_target_decoder,
)
from ssmsam.models.sam_encoder import LiteMedSamEncoder
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.weights import weights_digest
from ssmsam_research.protocols.clicks import Box


@dataclass(frozen=True)
class ModelChoice:
    """Which weights to load, and where to run them. An encoder that is to be chosen is chosen when this is made."""

    encoder: str = field(default_factory=default_encoder)
    weights: Path | None = None
    device: str = "cpu"
    allow_unverified: bool = False
    """Accept weights that are not the published ones."""
    published: bool = False
    """``medsam_lite`` as its makers publish it: their decoder, on whole embeddings in single precision."""
    bfloat16: bool | None = None
    """The encoder's precision; None as the server chooses."""
    store: Path | None = None
    """Folder where embeddings are kept from run to run; None keeps them in memory."""

    def digests(self) -> dict[str, str]:
        """Name -> sha256 of the weights that answer prompts: the encoder's, and those of a decoder of its own file."""
        found = decoder_weights(
            self.encoder, folder=self.weights, allow_unverified=self.allow_unverified, published=self.published
        )
        return {name: weights_digest(path) for name, path in found.items()}

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", choose_encoder(self.encoder, folder=self.weights))


@dataclass(frozen=True, eq=False)
class PromptedModel:
    """An encoder with its decoders."""

    embedder: Embedder
    decoder: PromptDecoder
    target: TargetDecoder
    ssm: SelfSamplingDecoder

    @classmethod
    def load(cls, choice: ModelChoice) -> PromptedModel:
        """Raises what the registries raise: ValueError, MissingWeights, CorruptWeights."""
        wanted: dict[str, Any] = {
            "folder": choice.weights,
            "device": choice.device,
            "allow_unverified": choice.allow_unverified,
        }
        encoder, bfloat16 = load_encoder(choice.encoder, **wanted), choice.bfloat16
        if choice.published and isinstance(encoder, LiteMedSamEncoder):
            # its makers' decoder reads the output whole, and no levels
            whole = LiteMedSamEncoder(encoder.sam, name=encoder.spec.name, weights_sha256=encoder.weights_sha256)
            encoder, bfloat16 = whole, False
        return cls(
            Embedder(encoder=encoder, store=EmbeddingStore(choice.store) if choice.store else None, bfloat16=bfloat16),
            load_decoder(choice.encoder, published=choice.published, **wanted),
            load_target_decoder(choice.encoder, **wanted),
            load_ssm_decoder(choice.encoder, **wanted),
        )

    @property
    def weights_sha256(self) -> str:
        return self.embedder.encoder.weights_sha256


@lru_cache(maxsize=1)
def loaded(choice: ModelChoice) -> PromptedModel:
    """One model for each process: loading it again for each case would cost more than small cases do."""
    return PromptedModel.load(choice)


class PromptedTarget:
    """One object of one volume; a :class:`~clicks.Target`. Remembers what the server would."""

    def __init__(self, embeddings: VolumeEmbeddings, decoder: PromptDecoder) -> None:
        self._embeddings = embeddings
        self._decoder = decoder
        self._state = SegmentationState()

    def slice_mask(self, index: int, clicks: Sequence[Click], box: Box | None) -> np.ndarray:
        """Mask (height, width) that ``sam_2d`` answers; empty when it finds nothing in the box, or refuses it."""
        try:
            request = self._request(index, clicks, box, dimension=2)
            answer = segment_2d(request, self._embeddings, self._decoder, self._state)
        except InvalidPrompt:  # the box or the clicks lead to no mask: counts as one that missed everything
            return np.zeros(self._embeddings.grid.shape[1:], dtype=bool)
        return answer.mask[index] != 0

    def volume_mask(self, index: int, clicks: Sequence[Click], box: Box | None) -> np.ndarray:
        """Mask (slices, rows, columns) that ``sam_3d`` answers.

        The clicks are sent one after the other, as a user sets them; the last one, or the box, goes through the
        volume.
        """
        try:
            for n in range(1, len(clicks)):
                request = self._request(index, clicks[:n], None, dimension=3, propagate=False)
                segment_3d(request, self._embeddings, self._decoder, self._state)
            request = self._request(index, clicks, box, dimension=3)
            return segment_3d(request, self._embeddings, self._decoder, self._state).mask != 0
        except InvalidPrompt:
            return np.zeros(self._embeddings.grid.shape, dtype=bool)

    def _request(
        self, index: int, clicks: Sequence[Click], box: Box | None, *, dimension: int, propagate: bool = True
    ) -> PromptRequest:
        points: dict[bool, list[list[int]]] = {True: [], False: []}
        for click in clicks:
            points[click.positive].append([click.x, click.y, index])
        corners = None
        if box is not None:
            corners = np.array([box[0], box[1], np.nan]), np.array([box[2], box[3], np.nan])
        return PromptRequest.of(
            grid=self._embeddings.grid,
            plane=self._embeddings.plane,
            dimension=dimension,
            positive=points[True],
            negative=points[False],
            box=corners,
            slice=index,
            propagate=propagate,
        )
