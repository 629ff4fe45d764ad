"""How sure the automatic model is of every voxel, as a volume to lay over the image."""

from __future__ import annotations

import time
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.active.uncertainty import MOST_VIEWS, uncertainty_map
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.fewshot_room import FewShotService
from ssmsam.server.outlook import VolumeOutlooks
from ssmsam.server.tasks.mask_files import write_mask
from ssmsam.server.tasks.prompted import progress_of

NOT_YET = (
    "no slice is annotated yet, so nothing can be expected: annotate a few slices, submit them, and run this again"
)


class UncertaintyMap(InferTask):
    """``uncertainty_map``: per cent of the highest entropy, 0 sure and 100 as good as a guess.

    It holds values, not labels: its type keeps viewers from offering it among the models that draw segments.
    """

    def __init__(self, room: FewShotService) -> None:
        super().__init__(
            type=InferType.OTHERS,
            labels=[],
            dimension=3,
            description="How unsure the few-shot model is of every voxel, 0 to 100; load it as a volume, not as labels",
            config={"views": 0},
        )
        self._room = room
        self._outlooks = VolumeOutlooks(room)

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """``request`` holds ``image``, a :class:`~ssmsam.server.images.Source`, and perhaps ``label``, a name, and
        ``views``, how often to ask again without a part of the annotated slices.

        Returns the path of the volume and the details. Raises InvalidRequest, UnreadableVolume.
        """
        started = time.perf_counter()
        room = self._room
        image = room.images.open(request["image"])
        image_id, label, views = image.source.image_id, str(request.get("label") or ""), _views(request)
        labels = [label] if label else self._outlooks.learnable()
        if not labels:
            raise InvalidRequest(NOT_YET)
        head, name = self._outlooks.head(image_id, labels)
        if label and label not in head.banks:
            raise InvalidRequest(f"the pinned head does not know {label!r}; it knows {', '.join(head.labels)}")
        support = room.labelled.support(image_id, labels=labels, only_this=True) if self._annotated(image_id) else {}
        with room.jobs.turns.long():
            unsure = uncertainty_map(
                head,
                image.embeddings,
                labels=labels,
                support=support,
                views=views,
                config=room.config,
                progress=progress_of(request),
            )
        path = write_mask(unsure, image.volume, request)
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

    def _annotated(self, image_id: str) -> bool:
        return bool(image_id) and bool(self._outlooks.annotated(image_id))


def _views(request: dict[str, Any]) -> int:
    asked = request.get("views") or 0
    try:
        views = int(asked)
    except (TypeError, ValueError):
        views = -1
    if not 0 <= views <= MOST_VIEWS:
        raise InvalidRequest(f"views should be a whole number from 0 to {MOST_VIEWS}, got {asked!r}")
    return views
