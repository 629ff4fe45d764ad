"""Clicks and boxes to masks, and commands in the shape of clicks, for viewers that cannot say something otherwise.

For a command the user clicks on a slice and runs the model. The answer is empty on the image's grid, which viewers
leave alone.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from cachetools import TTLCache
from monailabel.interfaces.tasks.infer_v2 import InferType

from ssmsam.annotation.annotations import SliceKey, now
from ssmsam.annotation.labels import is_reserved
from ssmsam.annotation.log import Mark, Verdict
from ssmsam.annotation.service import describe_finished
from ssmsam.interactive.session import SegmentationResult, segment_2d, segment_3d
from ssmsam.progress import shielded
from ssmsam.server.clients.prompts import read_flag, read_prompts
from ssmsam.server.clients.rest import InferenceCommand
from ssmsam.server.clients.slicer import FOR_LABEL, chosen_label, label_choices
from ssmsam.server.tasks import Task, latencies
from ssmsam.service.annotated_studies import AnnotatedStudies, Receipt
from ssmsam.service.errors import InvalidRequest, NotConfirmed
from ssmsam.service.images import OpenImage
from ssmsam.service.mask_files import centroids, slice_as_json, write_mask
from ssmsam.service.prompt_service import PromptService

LEVEL = 17
"""Uncertainty is told in 16 steps of 255: finer ones make an answer four times as large, and nobody sees them."""
UNNAMED = "object"
"""The label of a mask when the request names none: viewers use the segment that is selected."""
CLICK_FIRST = (
    "it is not known which slice this is about: place a point on it, and run the model again, or send its number as "
    "'slice'"
)
CONFIRM_S = 60
"""Within how many seconds a second run confirms: a guess at the time to read what is asked."""


class PromptTask(Task):
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
        return path, {
            **result.details,
            "label_names": labels,
            **shown,
            "latencies": latencies(started, opened, segmented, written),
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


class MessageTask(Task):
    """A command about an image. Subclasses say in :meth:`carry_out` what it does."""

    brief = True

    def __init__(self, prompting: PromptService, *, description: str, **options: Any) -> None:
        super().__init__(
            type=InferType.DEEPGROW,
            labels=[],
            dimension=2,
            description=description,
            config={FOR_LABEL: label_choices(prompting.labels), **options},
        )
        self._prompting = prompting

    def __call__(self, request: InferenceCommand) -> tuple[str, dict[str, Any]]:
        """The path of an empty mask, and what was done. Raises InvalidPrompt, InvalidRequest, InvalidSubmission."""
        started = time.perf_counter()
        image = self._prompting.images.open(request.image)
        if not image.source.image_id:
            raise InvalidRequest("annotations are only kept for images of the datastore: upload the image first")
        with shielded():  # what a person said is kept, whether or not they wait for the answer
            done = self.carry_out(request, image, self._prompting.studies)
        path = write_mask(np.zeros(image.volume.shape, np.uint8), image.volume, request.format)
        seconds = round(time.perf_counter() - started, 4)
        return path, {
            **done,
            "label_names": {},
            "centroids": {},
            "voxels": 0,
            "latencies": {"pre": 0.0, "infer": 0.0, "post": 0.0, "write": 0.0, "total": seconds},
        }

    def carry_out(self, request: InferenceCommand, image: OpenImage, studies: AnnotatedStudies) -> dict[str, Any]:
        """Do it; what the client is told."""
        raise NotImplementedError


SLICE_MESSAGES = {
    Verdict.ACCEPTED: (
        "Counts the mask of this slice as right: click on the organ, then run this",
        "the mask of {label} on slice {index} counts as right",
    ),
    Verdict.EMPTY: (
        "Counts this slice as one without the organ: click on the slice, then run this",
        "slice {index} counts as one without {label}",
    ),
    None: (
        "Takes back what was said of this slice: click on the organ, then run this",
        "slice {index} does not count as annotated for {label} any longer",
    ),
}
"""What the message of a verdict does, and what was done, in words; None withdraws what was said before."""


class SliceMessage(MessageTask):
    """``accept_slice``, ``empty_slice`` and ``withdraw_slice``: a message about one label on one slice, the clicked one
    or the one that ``slice`` names with a ``label``."""

    def __init__(self, prompting: PromptService, *, verdict: Verdict | None) -> None:
        description, self._done = SLICE_MESSAGES[verdict]
        super().__init__(prompting, description=description)
        self._verdict = verdict

    def carry_out(self, request: InferenceCommand, image: OpenImage, studies: AnnotatedStudies) -> dict[str, Any]:
        plane = image.embeddings.plane
        prompts = read_prompts(request.options, grid=image.volume.grid, plane=plane, dimension=2)
        index = prompts.current
        if index is None:
            raise InvalidRequest(CLICK_FIRST)
        if prompts.label and is_reserved(prompts.label):
            raise InvalidRequest(f"{prompts.label!r} is no label that a slice can be about: choose an organ")
        image_id, client = image.source.image_id, request.client
        clicked = prompts.slices.get(index)
        points = [*clicked.negative, *clicked.positive] if clicked else []
        yx = (round(float(points[-1][1])), round(float(points[-1][0]))) if points else None
        label = prompts.label or studies.clicked_label(image_id, client=client, axis=plane.axis, index=index, yx=yx)
        self._prompting.since(image, replace(prompts, label=label))  # this click is older than what it says
        if self._verdict is None:
            if SliceKey(label, plane.axis, index) not in studies.annotations(image_id).slices:
                raise InvalidRequest(f"slice {index} does not count as annotated for {label}: nothing to take back")
            partial = {"axis": 2 - plane.axis, "slices": {label: {"withdraw": [index]}}}
            receipt = studies.change(image_id, partial, client=client)
        else:
            receipt = studies.mark(image_id, Mark(label, index, self._verdict, plane.axis, client, now()))
        said = [self._done.format(label=label, index=index), *receipt.update.notes, *receipt.new_label_lines]
        return {**receipt.answer(), "label": label, "slice": index, "detail": "; ".join(said)}


class Undo(MessageTask):
    """``undo``: takes back what this client did last to the annotations of the image."""

    def __init__(self, prompting: PromptService) -> None:
        super().__init__(
            prompting, description="Takes back your last annotation of this volume: click anywhere, then run this"
        )

    def carry_out(self, request: InferenceCommand, image: OpenImage, studies: AnnotatedStudies) -> dict[str, Any]:
        receipt = studies.undo(image.source.image_id, client=request.client)
        update = receipt.update
        keys = sorted(update.withdrawn | update.entries.keys())
        slices = [f"slice {key.index} of {key.label}" for key in keys[:8]] + ["..."] * (len(keys) > 8)
        opened = [f"{label} is not finished any longer" for label in sorted(update.reopened)]
        return {
            **receipt.answer(),
            "slices": [{"label": key.label, "axis": 2 - key.axis, "slice": key.index} for key in keys],
            "detail": f"taken back: {'; '.join([', '.join(slices), *opened, *update.notes])}",
        }


class FinishVolume(MessageTask):
    """``finish_volume``: the masks on screen are right on every slice.

    Viewers run a model when a point is placed, so it asks once more: it finishes with ``confirm``, or when it is run
    again within :data:`CONFIRM_S` and would do the same still.
    """

    def __init__(self, prompting: PromptService) -> None:
        super().__init__(
            prompting,
            description="Declares the volume finished as it is on screen: click anywhere, run this, and run it again "
            "to confirm. Submit first what was drawn by hand",
            confirm=False,
        )
        self._asked: TTLCache[tuple[str, str], str] = TTLCache(maxsize=1024, ttl=CONFIRM_S)
        self._lock = threading.Lock()

    def carry_out(self, request: InferenceCommand, image: OpenImage, studies: AnnotatedStudies) -> dict[str, Any]:
        image_id = image.source.image_id
        client = request.client
        # viewers send the selected segment on every click, but this is about the volume: only a choice counts
        chosen = chosen_label(request.options)
        about: dict[str, Any] = {"client": client, "labels": [chosen] if chosen else ()}
        if not read_flag(request.options.get("confirm"), "confirm"):
            self._require_second_run(client, image_id, studies.finishing(image_id, **about))
        receipt = studies.finish(image_id, **about)
        held, answer = receipt.finished(), receipt.answer()
        where = studies.files.place if receipt.annotations.finished else "the annotations of this server"
        said = [f"finished: {describe_finished(held)}", *receipt.update.notes, f"kept in {where}"]
        return {
            **answer,
            "receipt": {label: asdict(one) for label, one in held.items()},
            "stored": where,
            "detail": "; ".join(said),
        }

    def _require_second_run(self, client: str, image_id: str, planned: Receipt) -> None:
        held, masks = planned.finished(), {key: one.mask.digest for key, one in planned.update.entries.items()}
        planned_now = repr((planned.annotations.revision, planned.since, held, masks))
        with self._lock:
            if self._asked.pop((client, image_id), None) == planned_now:
                return
            self._asked[client, image_id] = planned_now
        notes = "".join(f"; {note}" for note in planned.update.notes)
        raise NotConfirmed(
            f"this would finish {describe_finished(held)}{notes}. Run finish_volume again within {CONFIRM_S} seconds "
            "to do so, or send confirm: true"
        )
