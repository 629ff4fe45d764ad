"""The click and box tasks that viewers list: thin fronts on ``ssmsam.prompting``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.encoders.embedder import Embedder
from ssmsam.prompting.decoder import PromptDecoder
from ssmsam.prompting.request import PromptRequest
from ssmsam.prompting.session import segment_2d, segment_3d
from ssmsam.prompting.state import StateStore
from ssmsam.server.answer import centroids, write_mask
from ssmsam.server.background import Background
from ssmsam.server.images import Images, OpenImage

UNNAMED = "object"
"""The label of a mask when the request names none: viewers use the segment that is selected."""


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What both tasks work with. What a user did in one of them, the other one knows."""

    images: Images
    embedder: Embedder
    decoder: PromptDecoder
    background: Background
    states: StateStore = field(default_factory=StateStore)


class PromptedTask(InferTask):
    """Clicks and boxes to the mask of one object, on a slice (``dimension`` 2) or through the volume (3)."""

    def __init__(self, prompting: Prompting, *, dimension: int) -> None:
        options: dict[str, Any] = {"reset_state": False}
        if dimension == 3:
            options |= {"propagate": True, "max_mm": 0.0, "z_range": ""}
        where = "this slice" if dimension == 2 else "the whole volume, in both directions"
        super().__init__(
            type=InferType.DEEPGROW,
            labels=[],  # none of its own: viewers then offer the labels of the app
            dimension=dimension,
            description=f"Click on an organ or draw a box round it: segments {where}",
            config=options,
        )
        self._prompting = prompting

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """``request`` holds the viewer's parameters and ``image``, a :class:`~ssmsam.server.images.Source`.

        Returns the path of the mask and the details. Raises InvalidPrompt, InvalidRequest, UnreadableVolume.
        """
        started = time.perf_counter()
        options = {**self.config(), **request}
        room = self._prompting
        image = room.images.open(options["image"])
        embeddings = image.embeddings
        prompts = PromptRequest.parse(options, grid=image.volume.grid, plane=embeddings.plane, dimension=self.dimension)
        opened = time.perf_counter()
        state = room.states.open(image.key, prompts.label, prompts.client_id)
        segment = segment_2d if self.dimension == 2 else segment_3d
        result = segment(prompts, embeddings, room.decoder, state)
        segmented = time.perf_counter()
        path = write_mask(result.mask, image.volume, options)
        written = time.perf_counter()
        room.background.prefer(image, near=prompts.current)
        seconds = {
            "pre": opened - started, "infer": segmented - opened, "post": 0.0,
            "write": written - segmented, "total": written - started,
        }  # fmt: skip
        labels = {prompts.label or UNNAMED: 1}
        return path, {
            **result.details,
            "label_names": labels,
            "centroids": centroids(result.mask, labels),
            "voxels": int(result.mask.sum()),
            "latencies": {name: round(value, 4) for name, value in seconds.items()},
            **self._circumstances(image),
        }

    def _circumstances(self, image: OpenImage) -> dict[str, Any]:
        """How the answer came about, for records and tests."""
        encoder = self._prompting.embedder.encoder
        return {
            "encoder": encoder.spec.name,
            "encoder_sha256": encoder.weights_sha256,
            "recipe": image.embeddings.recipe.name,
            "encoded_slices": self._prompting.embedder.encoded,
        }
