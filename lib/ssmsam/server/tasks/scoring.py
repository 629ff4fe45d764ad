"""How good masks are, as far as annotations can tell, and how good they are expected to be where nobody looked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from pydantic import Field

from ssmsam.annotation.annotations import Annotations, SliceAnnotation
from ssmsam.annotation.labels import read_label_info
from ssmsam.ops import dice
from ssmsam.progress import Cancelled
from ssmsam.reading import read_volume
from ssmsam.server.clients.rest import Options
from ssmsam.server.datastore.studies import StudiesDatastore
from ssmsam.service.images import UNUSABLE
from ssmsam.service.volume_forecasts import Deadline, VolumeForecasts
from ssmsam.volume.volume import Volume

logger = logging.getLogger(__name__)


class ScoreOptions(Options):
    """Of ``uncertainty``: the most seconds that it may take."""

    budget_s: float = Field(default=3600.0, gt=0)


class DiceScore(ScoringMethod):
    """``dice``: masks that a model made (batch inference saves them) against what people annotated afterwards.

    Label by label, over annotated slices and known pixels only. A slice counts when it was annotated after the mask
    was made: an older annotation is part of the mask. Stores ``dice`` (mean over labels, [0, 1]) and
    ``dice_per_label`` in the image's information.
    """

    def __init__(self) -> None:
        super().__init__("Dice of model masks on the slices that were annotated after them, mean over labels")

    def __call__(self, request: dict[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Image -> what was stored. ``y_pred`` names the tag of the masks ("original").

        Images without a slice to compare are left out. Raises InvalidRequest.
        """
        tag = str(request.get("y_pred") or DefaultLabelTag.ORIGINAL.value)
        found = {}
        for image in datastore.list_images():
            try:
                compared = compare(datastore, image, tag, datastore.annotations(image))
            except UNUSABLE as error:
                logger.warning("Image %s is left out: %s", image, error)
                continue
            if compared:
                mean = float(np.mean([one["dice"] for one in compared.values()]))
                found[image] = {"dice": round(mean, 4), "dice_per_label": compared}
                datastore.update_image_info(image, found[image])
        return found


class UncertaintyScore(ScoringMethod):
    """``uncertainty``: the Dice that the few-shot model misses by its own expectation, on slices nobody annotated.

    Stores ``uncertainty`` (mean over labels, [0, 1]) and ``uncertainty_per_label`` in the image's information. Goes
    through images that are not finished, until ``budget_s`` is over; embeds those that are not.
    """

    def __init__(self, forecasts: VolumeForecasts) -> None:
        super().__init__("Expected loss of Dice on slices that nobody annotated, mean over labels")
        self._forecasts = forecasts

    def __call__(self, request: dict[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """Image -> what was stored. Raises InvalidRequest."""
        deadline = Deadline(ScoreOptions.read(request).budget_s)
        labels = self._forecasts.learnable()
        found: dict[str, Any] = {}
        for image in self._forecasts.service.images.usable(sorted(datastore.get_unlabeled_images())) if labels else ():
            if not deadline.left:
                break
            try:
                with self._forecasts.service.images.reading(image):
                    self._forecasts.service.images.embeddings(image).embed(progress=deadline.progress)
                    volume_forecast = self._forecasts.of(image, labels, deadline=deadline)
            except (*UNUSABLE, Cancelled):
                continue
            per_label = {
                label: round(1 - forecast.dice, 4) for label, forecast in volume_forecast.state.forecasts.items()
            }
            mean = round(float(np.mean(list(per_label.values()))), 4)
            found[image] = {
                "uncertainty": mean,
                "uncertainty_per_label": per_label,
                "uncertainty_head": volume_forecast.checkpoint,
            }
            datastore.update_image_info(image, found[image])
        return found


def compare(datastore: StudiesDatastore, image: str, tag: str, known: Annotations) -> dict[str, Any]:
    """Label -> Dice and slices of a mask that was saved under a tag."""
    label_id = datastore.get_label_by_image_id(image, tag)
    if not label_id:
        return {}
    info = datastore.get_label_info(label_id, tag) or {}
    if not info.get("ts"):
        return {}  # nobody knows which annotations it was made from
    mask = read_volume(datastore.get_label_uri(label_id, tag))
    if not mask.grid.matches(known.grid):
        return {}
    saved = datetime.fromtimestamp(float(info["ts"]) + 1, UTC).isoformat(timespec="microseconds")
    compared = {}
    for label, value in _values(info, mask).items():
        drawn = mask.array == value
        slices = [
            (entry, key.plane.stack(drawn)[key.index])
            for key, entry in known.slices.items()
            if key.label == label and entry.when > saved
        ]
        if slices:
            compared[label] = overlap(slices)
    return compared


def overlap(slices: list[tuple[SliceAnnotation, np.ndarray]]) -> dict[str, Any]:
    """Dice in [0, 1] over all slices together, where they are known; 1 when all are rightly empty."""
    truth = np.concatenate([entry.mask.array[entry.weight > 0] for entry, _ in slices])
    mask = np.concatenate([drawn[entry.weight > 0] for entry, drawn in slices])
    return {"dice": round(float(dice(truth, mask)), 4), "slices": len(slices)}


def _values(info: Mapping[str, Any], mask: Volume) -> dict[str, int]:
    """Label -> voxel value of a saved label."""
    names = (info.get("params") or {}).get("label_names") if isinstance(info.get("params"), dict) else None
    if isinstance(names, dict):
        return {str(name): int(value) for name, value in names.items()}
    return read_label_info(info.get("label_info"), fallback=(), values=np.unique(mask.array).tolist())
