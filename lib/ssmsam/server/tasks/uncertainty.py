"""How sure the automatic model is of every voxel, as a volume to lay over the image."""

from __future__ import annotations

import time
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from pydantic import Field

from ssmsam.active.forecast import MOST_VIEWS, uncertainty_map
from ssmsam.server.clients.rest import InferenceCommand, Options
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.service.mask_files import write_mask
from ssmsam.service.volume_forecasts import VolumeForecasts

NOT_YET = (
    "no slice is annotated yet, so nothing can be expected: annotate a few slices, submit them, and run this again"
)


class MapOptions(Options):
    """How often to ask again without a part of the annotated slices."""

    views: int = Field(default=0, ge=0, le=MOST_VIEWS)


class UncertaintyMap(InferTask):
    """``uncertainty_map``: per cent of the highest entropy, 0 sure and 100 as good as a guess.

    It holds values, not labels: its type keeps viewers from offering it among the models that draw segments.
    """

    def __init__(self, service: FewShotService) -> None:
        super().__init__(
            type=InferType.OTHERS,
            labels=[],
            dimension=3,
            description="How unsure the few-shot model is of every voxel, 0 to 100; load it as a volume, not as labels",
            config=MapOptions().model_dump(),
        )
        self._service = service
        self._forecasts = VolumeForecasts(service)

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: InferenceCommand) -> tuple[str, dict[str, Any]]:
        """The path of the volume, and the details. Of the options ``label`` names the one label that it is about, and
        ``views`` says how often to ask again without a part of the annotated slices.

        Raises InvalidRequest, UnreadableVolume.
        """
        started = time.perf_counter()
        service = self._service
        image = service.images.open(request.image)
        image_id, label, views = image.source.image_id, request.label, MapOptions.read(request.options).views
        labels = [label] if label else self._forecasts.learnable()
        if not labels:
            raise InvalidRequest(NOT_YET)
        task, name = self._forecasts.task(image_id, labels)
        if label and label not in task.banks:
            raise InvalidRequest(
                f"the pinned task checkpoint does not know {label!r}; it knows {', '.join(task.labels)}"
            )
        annotated = image_id and self._forecasts.annotated(image_id)
        support = service.labelled.support(image_id, labels=labels, only_this=True) if annotated else {}
        with service.jobs.turns.long(request.progress):
            unsure = uncertainty_map(
                task,
                image.embeddings,
                labels=labels,
                support=support,
                views=views,
                config=service.config,
                progress=request.progress,
            )
        path = write_mask(unsure, image.volume, request.format)
        return path, {
            "label_names": {},
            "centroids": {},
            "labels": labels,
            "unit": "per cent of one bit of entropy",
            "views": views,
            "mean": round(float(unsure.mean()), 3),
            "head": name,
            "latencies": {"total": round(time.perf_counter() - started, 4)},
        }
