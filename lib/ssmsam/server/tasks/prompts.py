"""The click and box tasks that viewers list: thin fronts on ``ssmsam.interactive``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.interactive.session import SegmentationResult, segment_2d, segment_3d
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.server.clients.rest import InferenceCommand
from ssmsam.server.clients.slicer import FOR_LABEL, label_choices
from ssmsam.service.mask_files import centroids, slice_as_json, write_mask
from ssmsam.service.prompt_service import PromptService

LEVEL = 17
"""Uncertainty is told in 16 steps of 255: finer ones make an answer four times as large, and nobody sees them."""
UNNAMED = "object"
"""The label of a mask when the request names none: viewers use the segment that is selected."""


class PromptTask(InferTask):
    """Clicks and boxes to the mask of one object, on a slice (``dimension`` 2) or through the volume (3)."""

    brief = True
    """Somebody waits for it with a finger on the mouse: long work pauses."""

    def __init__(self, prompting: PromptService, *, dimension: int) -> None:
        options: dict[str, Any] = {"reset_state": False, FOR_LABEL: label_choices(prompting.labels)}
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

    def __call__(self, request: InferenceCommand) -> tuple[str, dict[str, Any]]:
        """The path of the mask, and the details. Raises InvalidPrompt, InvalidRequest, UnreadableVolume."""
        started = time.perf_counter()
        options = {**self.config(), **request.options}
        prompting = self._prompting
        image = prompting.images.open(request.image)
        embeddings = image.embeddings
        prompts = read_prompts(options, grid=image.volume.grid, plane=embeddings.plane, dimension=self.dimension)
        opened = time.perf_counter()
        client = request.client
        confirmed = prompting.confirmed(image, prompts, client)
        gone = {index for index, mask in confirmed.items() if mask.empty}  # a click that only said so is no prompt
        prompts = replace(prompts, slices={k: prompt for k, prompt in prompts.slices.items() if k not in gone})
        state = prompting.states.open(image.key, prompts.label, prompts.client_id)
        segment = segment_2d if self.dimension == 2 else segment_3d
        result = segment(prompts, embeddings, prompting.decoder, state, progress=request.progress)
        for index, mask in confirmed.items():
            embeddings.plane.stack(result.mask)[index] = mask.array
        segmented = time.perf_counter()
        prompting.serve(image, prompts, result, client)
        labels = {request.label_as_sent or UNNAMED: 1}
        if request.slice_only:
            path, shown = "", _slice(result)
        else:
            path = write_mask(result.mask, image.volume, request.format)
            shown = {"centroids": centroids(result.mask, labels), "voxels": int(result.mask.sum())}
        written = time.perf_counter()
        prompting.background.prefer(image, near=prompts.current, client=client)
        seconds = {
            "pre": opened - started, "infer": segmented - opened, "post": 0.0,
            "write": written - segmented, "total": written - started,
        }  # fmt: skip
        return path, {
            **result.details,
            "label_names": labels,
            **shown,
            "latencies": {name: round(value, 4) for name, value in seconds.items()},
            # how the answer came about, for records and tests
            "encoder": prompting.embedder.encoder.spec.name,
            "encoder_sha256": prompting.embedder.encoder.weights_sha256,
            "recipe": embeddings.recipe.name,
            "encoded_slices": prompting.embedder.encoded,
        }


def _slice(result: SegmentationResult) -> dict[str, Any]:
    """The slice that was asked for and where it is uncertain, for the details. The volume is never touched."""
    embeddings, index = result.embeddings, result.details["slice"]
    mask, unsure = result.slice_mask(index), result.uncertainty
    place: dict[str, Any] = {"plane": embeddings.plane, "grid": embeddings.grid}
    return {
        "slice_mask": slice_as_json(mask, index, **place),
        "uncertainty": None if unsure is None else slice_as_json(LEVEL * np.rint(unsure * 255 / LEVEL), index, **place),
        "voxels": int(mask.sum()),
    }
