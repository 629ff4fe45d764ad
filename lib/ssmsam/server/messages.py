"""Message models: commands in the shape of click tasks, for viewers that have no other way to say something.

The user clicks on a slice and runs the model. The answer is empty on the image's grid, which viewers leave alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.annotation.records import Mark, Verdict
from ssmsam.annotation.truth import now
from ssmsam.prompting.request import PromptRequest
from ssmsam.server.annotated import AnnotatedStudies, Receipt
from ssmsam.server.answer import write_mask
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.images import OpenImage
from ssmsam.server.prompted import FOR_LABEL, Prompting, chosen_label, label_choices, named

CLICK_FIRST = "it is not known which slice this is about: place a point on it, and run the model again"


class MessageTask(InferTask):
    """A command about an image. Subclasses say in :meth:`carry_out` what it does."""

    def __init__(self, prompting: Prompting, *, description: str) -> None:
        super().__init__(
            type=InferType.DEEPGROW,
            labels=[],
            dimension=2,
            description=description,
            config={FOR_LABEL: label_choices(prompting.labels)},
        )
        self._prompting = prompting

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """``request`` holds the viewer's parameters and ``image``, a :class:`~ssmsam.server.images.Source`.

        Returns the path of an empty mask, and what was done. Raises InvalidPrompt, InvalidRequest, InvalidSubmission.
        """
        started = time.perf_counter()
        options = named({**request})
        image = self._prompting.images.open(options["image"])
        if not image.source.image_id or not isinstance(self._prompting.datastore, AnnotatedStudies):
            raise InvalidRequest("annotations are only kept for images of the datastore: upload the image first")
        receipt = self.carry_out(options, image, self._prompting.datastore)
        path = write_mask(np.zeros(image.volume.shape, np.uint8), image.volume, options)
        seconds = round(time.perf_counter() - started, 4)
        return path, {
            **receipt.answer(),
            "label_names": {},
            "centroids": {},
            "voxels": 0,
            "latencies": {"pre": 0.0, "infer": 0.0, "post": 0.0, "write": 0.0, "total": seconds},
        }

    def carry_out(self, options: dict[str, Any], image: OpenImage, datastore: AnnotatedStudies) -> Receipt:
        raise NotImplementedError


class SliceVerdict(MessageTask):
    """``accept_slice`` and ``empty_slice``: the clicked slice counts as annotated."""

    def __init__(self, prompting: Prompting, *, verdict: Verdict) -> None:
        said = {
            Verdict.ACCEPTED: "Counts the mask of this slice as right: click on the organ, then run this",
            Verdict.EMPTY: "Counts this slice as one without the organ: click on the slice, then run this",
        }
        super().__init__(prompting, description=said[verdict])
        self._verdict = verdict

    def carry_out(self, options: dict[str, Any], image: OpenImage, datastore: AnnotatedStudies) -> Receipt:
        plane = image.embeddings.plane
        prompts = PromptRequest.parse(options, grid=image.volume.grid, plane=plane, dimension=2)
        index = prompts.current
        if index is None:
            raise InvalidRequest(CLICK_FIRST)
        client = str(options.get("client_id") or "")
        label = prompts.label or datastore.clicked_label(
            image.source.image_id, client=client, axis=plane.axis, index=index, yx=_last_click(prompts, index)
        )
        self._prompting.since(image, replace(prompts, label=label))  # this click is older than what it says
        return datastore.mark(image.source.image_id, Mark(label, index, self._verdict, plane.axis, client, now()))


class FinishVolume(MessageTask):
    """``finish_volume``: the masks on screen are right on every slice."""

    def __init__(self, prompting: Prompting) -> None:
        super().__init__(
            prompting,
            description="Declares the volume finished as it is on screen: click anywhere, then run this. "
            "Submit first what was drawn by hand",
        )

    def carry_out(self, options: dict[str, Any], image: OpenImage, datastore: AnnotatedStudies) -> Receipt:
        client = str(options.get("client_id") or "")
        # viewers send the selected segment on every click, but this is about the volume: only a choice counts
        chosen = chosen_label(options)
        return datastore.finish(image.source.image_id, client=client, labels=[chosen] if chosen else ())


def _last_click(prompts: PromptRequest, index: int) -> tuple[int, int] | None:
    """(y, x) of the newest point on the slice."""
    prompt = prompts.slices.get(index)
    points = [] if prompt is None else [*prompt.negative, *prompt.positive]
    return (round(float(points[-1][1])), round(float(points[-1][0]))) if points else None
