"""What the tasks of clicks and boxes share, what they know of each client's prompts, and a first inference at start."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssmsam.annotation.annotations import now
from ssmsam.cache import Cache
from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.request import PromptRequest
from ssmsam.interactive.session import SegmentationResult, SegmentationState, StateStore, same, segment_2d, segment_3d
from ssmsam.models.encoder import Encoder
from ssmsam.models.prompt_decoder import PromptDecoder, SlicePrompt
from ssmsam.ops import PackedMask
from ssmsam.reading import read_volume
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.background import Background
from ssmsam.service.images import Images, OpenImage
from ssmsam.service.mask_files import MaskFormat, write_mask
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

logger = logging.getLogger(__name__)

REMEMBERED = 1024
"""Objects whose prompts are remembered with the time of each: a guess, many more than are worked on at once. Prompts of
a forgotten one count as sent anew: the next answer says of their slices what the prompts say."""


@dataclass(frozen=True, kw_only=True)
class PromptService:
    """What these tasks work with. What a user did in one of them, the others know."""

    images: Images
    studies: AnnotatedStudies
    embedder: Embedder
    decoder: PromptDecoder
    background: Background
    states: StateStore = field(default_factory=StateStore)
    labels: tuple[str, ...] = ()
    """The labels that viewers are offered."""

    asked: Cache[tuple[str, str, str], dict[int, tuple[SlicePrompt, str]]] = field(
        default_factory=lambda: Cache(REMEMBERED)
    )
    """Image, label and client -> slice -> its prompts, and when they were first sent."""

    def since(self, image: OpenImage, prompts: PromptRequest) -> dict[int, str]:
        """When the prompts that a request has on its slices were first sent."""
        known = self.asked.recalled((image.key, prompts.label, prompts.client_id), dict)
        for index, prompt in prompts.slices.items():
            if index not in known or not same(prompt, known[index][0]):
                known[index] = prompt, now()
        return {index: known[index][1] for index in prompts.slices}

    def confirmed(self, image: OpenImage, prompts: PromptRequest, client: str) -> dict[int, PackedMask]:
        """Slices that this client annotated itself, after it had sent the prompts on them that it sends again now.

        Viewers replace all that they show by the answer for a volume, and send all points each time.
        """
        if not (image.source.image_id and prompts.label):
            return {}
        since = self.since(image, prompts)
        if prompts.dimension == 2:
            return {}
        known = self.studies.annotated_by(
            client, image.source.image_id, prompts.label, grid=image.volume.grid, plane=image.embeddings.plane
        )
        return {index: entry.mask for index, entry in known.items() if since.get(index, "") < entry.when}

    def serve(self, image: OpenImage, prompts: PromptRequest, result: SegmentationResult, client: str) -> None:
        """Remember what a client has on screen now, so that its submission can be compared with it."""
        if not image.source.image_id:
            return
        flat = prompts.dimension == 2
        if flat and not result.slices:
            return  # viewers ignore an empty answer to a click on a slice
        self.studies.serve(
            image.source.image_id,
            result.slices if flat else result.mask,
            label=prompts.label,
            client=client,
            plane=image.embeddings.plane,
            prompted=result.details["slices_prompted"],
        )


def warm_up(encoder: Encoder, decoder: PromptDecoder) -> None:
    """Run one inference, so that the first user does not wait for lazy imports. The server works without it, and a real
    fault shows again in the first request."""
    started = time.perf_counter()
    try:
        _one_inference(encoder, decoder)
        logger.info("Warm after %.1f s", time.perf_counter() - started)
    except Exception:
        logger.exception("The warm-up failed")


def _one_inference(encoder: Encoder, decoder: PromptDecoder) -> None:
    """Read, embed, segment and write a tiny volume, as requests do. Leaves nothing behind."""
    array = np.zeros((3, 64, 64), np.int16)
    array[:, 16:48, 16:48] = 200
    with tempfile.TemporaryDirectory(prefix="ssmsam-warm-up-") as folder:
        file = Path(folder) / "block.nii.gz"
        write_volume(Volume(array, np.diag([1.0, 1.0, 2.0, 1.0]), "MR"), file)
        volume = read_volume(file)
        embeddings = Embedder(encoder=encoder).open(volume)  # its own: not counted, not stored
        for dimension, segment in ((2, segment_2d), (3, segment_3d)):
            request = PromptRequest.of(positive=[[32, 32, 1]], grid=volume.grid, dimension=dimension)
            result = segment(request, embeddings, decoder, SegmentationState())
            for suffix in (".nrrd", ".nii.gz"):
                Path(write_mask(result.mask, volume, MaskFormat(suffix=suffix))).unlink()
