"""Other packages that answer clicks, behind the same two steps as our model: a slice is opened, then clicked on.

All weights of rivals are random numbers: that costs the same time, and nothing has to be fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ssmsam.cli.annotator import Click
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.prompted import ModelChoice, PromptedModel, PromptedTarget

RIVALS = {
    "segment-anything": "segment-anything",
    "sam2": "sam2",
}
"""Name -> the package it comes from. ``sam2`` with the network that MONAI Label's own SAM 2 task takes."""


class ClickedModel(Protocol):
    """A model with one volume."""

    def open_and_click(self, index: int, clicks: Sequence[Click]) -> np.ndarray:
        """Encode a slice that was not looked at before, and answer the clicks: its mask (height, width)."""
        ...

    def click(self, clicks: Sequence[Click]) -> np.ndarray:
        """Answer all clicks so far on the slice that was opened last."""
        ...


class OurModel:
    """What answers the server's requests, with embeddings in memory."""

    def __init__(self, choice: ModelChoice, volume: Volume) -> None:
        self._model = PromptedModel.load(choice)
        self._embeddings = self._model.embedder.open(volume)
        self._target, self._index = PromptedTarget(self._embeddings, self._model.decoder), -1

    def open_and_click(self, index: int, clicks: Sequence[Click]) -> np.ndarray:
        self._target, self._index = PromptedTarget(self._embeddings, self._model.decoder), index
        return self.click(clicks)

    def click(self, clicks: Sequence[Click]) -> np.ndarray:
        return self._target.slice_mask(self._index, clicks, None)


class PredictorModel:
    """A predictor of segment-anything or of sam2, which have one interface."""

    def __init__(self, predictor: Any, volume: Volume) -> None:
        self._predictor = predictor
        self._volume = volume
        self._scale = recipe_for(volume).scale(volume)

    def open_and_click(self, index: int, clicks: Sequence[Click]) -> np.ndarray:
        grey = (self._scale.apply(self._volume.array[index]) * 255).astype(np.uint8)
        self._predictor.set_image(np.repeat(grey[..., None], 3, axis=2))
        return self.click(clicks)

    def click(self, clicks: Sequence[Click]) -> np.ndarray:
        masks, _, _ = self._predictor.predict(
            point_coords=np.array([[click.x, click.y] for click in clicks], dtype=float),
            point_labels=np.array([int(click.positive) for click in clicks]),
            multimask_output=False,
        )
        return np.asarray(masks[0]) > 0


def open_rival(name: str, volume: Volume, device: str) -> ClickedModel:
    """One of :data:`RIVALS`. Raises ValueError when its package is not installed."""
    try:
        return PredictorModel(_sam_predictor(device) if name == "segment-anything" else _sam2_predictor(device), volume)
    except ImportError as error:
        raise ValueError(f"{name} cannot be measured ({error}); install it with: pip install {RIVALS[name]}") from error


def _sam_predictor(device: str) -> Any:
    from segment_anything import SamPredictor, sam_model_registry

    return SamPredictor(sam_model_registry["vit_b"]().eval().to(device))


def _sam2_predictor(device: str) -> Any:
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    return SAM2ImagePredictor(build_sam2("configs/sam2/sam2_hiera_l.yaml", device=device))
