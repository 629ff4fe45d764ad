"""The automatic model: learns from the annotated slices, proposes the rest, and says how sure it is of each voxel.

In two beats: what the decoder says when the annotated slices prompt it is answered at once. It is adapted in a job
beside, and what comes of that answers from the next run on if it is estimated to be better.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from pydantic import Field

from ssmsam.active.forecast import MOST_VIEWS, uncertainty_map
from ssmsam.active.volume_state import end_question
from ssmsam.annotation.annotations import now
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.pipeline import Prediction, as_annotated, segment
from ssmsam.fewshot.proposals import Clicks
from ssmsam.fewshot.support import Support, digest
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.models.registry import SSM_SAM
from ssmsam.progress import Progress
from ssmsam.server.clients.ohif import keep_the_rest
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.server.clients.rest import FewShotCommand, InferenceCommand, Options
from ssmsam.server.tasks import Task, latencies
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.fewshot_service import ADAPT, Answer, FewShotService, Limits
from ssmsam.service.images import OpenImage
from ssmsam.service.jobs import Job, UnknownJob, account
from ssmsam.service.mask_files import centroids, write_mask
from ssmsam.service.volume_forecasts import VolumeForecasts

HINTS = 3
"""How many uncertain slices of each label the answer names."""
SURE = 0.98
"""A slice of at least this expected Dice is not called uncertain: a *guess*."""

FROM_ELSEWHERE = (
    "the annotated slices of this checkpoint are not on this server, so that masks are less exact than with them: "
    "annotate a few slices here and run without it"
)

NOT_YET = (
    "no slice is annotated yet, so nothing can be expected: annotate a few slices, submit them, and run this again"
)
DESCRIPTIONS = {
    FEWSHOT: "Proposes the rest of this image from the slices that were annotated so far, and adapts beside",
    SSM_SAM: "The same with self-sampled points and mask attention, from a start made for quick adaptation",
}


@dataclass(frozen=True, eq=False)
class Asked:
    """What a client asked of the automatic model: the image, what was learned there and elsewhere, and how."""

    image: OpenImage
    client: str
    command: FewShotCommand
    support: Support
    config: FewShotConfig
    wait: bool

    @property
    def adapts(self) -> bool:
        return self.config.adaptation.steps > 0


class FewShotTask(Task):
    """``fewshot`` and ``ssm_sam``: all annotated labels in one image."""

    def __init__(self, service: FewShotService) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={label: number for number, label in enumerate(service.labels, 1)},
            dimension=3,
            description=DESCRIPTIONS[service.method],
            config={
                # the closed form is enough where a decoder has learned to use it; who asks for gradient steps gets them
                "adapt": service.method != FEWSHOT or not service.decoder.pretrained,
                "wait": False,
                "only_this_image": False,
                "budget_s": service.config.adaptation.budget_s,
            },
        )
        self._service = service

    def info(self) -> dict[str, Any]:
        labels = {label: number for number, label in enumerate(self._service.offered, 1)}
        return {**super().info(), "labels": labels}

    def __call__(self, request: InferenceCommand) -> tuple[str, dict[str, Any]]:
        """The path of the label map, and the details. Raises InvalidRequest, UnreadableVolume."""
        started = time.perf_counter()
        service = self._service
        command = FewShotCommand.of({**self.config(), **request.options}, service.offered)
        asked = self._asked(request, command)
        image, progress = asked.image, request.progress
        self._stop_outdated(asked)
        task, name, fresh = service.task(
            asked.support, asked.config, volume=image.embeddings.key.digest, wait=asked.wait, progress=progress
        )
        adapted = time.perf_counter()
        clicks = self._clicks(request, image, task)
        found, proposed, known = self._answer(asked, task, name, clicks, progress)
        segmented = time.perf_counter()
        values = self._values(found.labels, command)
        mask = np.array([0, *(values[label] for label in found.labels)], dtype=np.uint8)[proposed]
        if command.replaces_screen and image.source.image_id:
            keep_the_rest(service.studies, image, mask, values, offered=service.offered, client=asked.client)
        path = write_mask(mask, image.volume, request.format)
        self._serve(image, found.labels, proposed, asked.client, clicks)
        if image.source.image_id:
            service.studies.expect(image.source.image_id, found.expected)
        beside = self._adapts_beside(asked, name)
        service.background.prefer(image, client=asked.client)
        done = time.perf_counter()
        return path, {
            "label_names": values,
            "centroids": centroids(mask, values),
            "detail": in_words(found, task, fresh=fresh, beside=beside is not None),
            "method": service.method,
            "head": name,
            "start": task.card.get("start", ""),
            "adapted": bool(task.card.get("adapted")),
            "adapted_now": fresh,
            "job": beside and beside.id,
            "answered_before": known,
            "dice_estimate": task.card["dice_estimate"],
            "expected_dice": {label: round(value, 3) for label, value in found.expected.items()},
            "learned_from": task.learned_from,
            "support_here": not task.summarised,
            "asked_slices": dict(found.asked),
            "uncertain_slices": dict(found.uncertain),
            "slice_dice": {
                label: {str(k): round(dice, 3) for k, dice in by_slice.items()}
                for label, by_slice in found.slice_dice.items()
            },
            "latencies": latencies(started, adapted, segmented, done),
            "encoder": service.embedder.encoder.spec.name,
            "encoder_sha256": service.embedder.encoder.weights_sha256,
            "encoded_slices": service.embedder.encoded,
        }

    def _asked(self, request: InferenceCommand, command: FewShotCommand) -> Asked:
        """What a request is about. Raises InvalidRequest where no slice is annotated."""
        service = self._service
        image = service.images.open(request.image)
        support = self._labelled(image, command)
        if not support:
            raise InvalidRequest(
                "no slice is annotated yet: draw an organ on a few slices and submit, or click on it with sam_2d and "
                "run accept_slice; then run this model again"
            )
        # a decoder that knows no organ yet says little before it has adapted
        wait = command.wait or not service.start[0].pretrained
        config = service.config
        steps = config.adaptation.steps if command.adapt else 0
        adaptation = replace(config.adaptation, budget_s=command.budget_s, steps=steps)
        config = replace(config, adaptation=adaptation, folds=config.folds if command.adapt else 0)
        return Asked(image, request.client, command, support, config, wait)

    def _labelled(self, image: OpenImage, command: FewShotCommand) -> Support:
        image_id, only = image.source.image_id, command.only_this_image
        return self._service.labelled.support(image_id, labels=command.labels, only_this=only)

    def _answer(
        self, asked: Asked, task: AdaptedTask, name: str, clicks: Mapping[str, Clicks], progress: Progress
    ) -> tuple[Answer, np.ndarray, bool]:
        """What the checkpoint says of the image, kept while nothing changes; its mask with all slices that are
        annotated by now; and whether the answer was known already."""
        service, embeddings, known = self._service, asked.image.embeddings, True
        key = (
            service.method, name, task.card["created"], digest(asked.support), embeddings.key.digest, _told(clicks),
            service.config.segmentation,
        )  # fmt: skip

        def made() -> Answer:
            nonlocal known
            known = False
            with service.jobs.turns.long(progress):
                prediction = segment(
                    embeddings, task, support=asked.support, clicks=clicks, config=service.config, progress=progress
                )
            least_sure = slice_dice(prediction, asked.support, embeddings.key.digest)
            return Answer(
                labels=prediction.labels,
                packed=Answer.pack(prediction.mask),
                shape=prediction.mask.shape,
                uncertain=hints(least_sure),
                asked={label: list(slices) for label, slices in prediction.open_ends.items()},
                expected=dict(prediction.dice),
                slice_dice=least_sure,
            )

        found = service.answers.recalled(key, made)
        # the checkpoint was shown some of the annotated slices of this volume: all of them stay as they are
        image_id, limits = asked.image.source.image_id, Limits(own=sys.maxsize, others=0)
        everything = service.labelled.support(image_id, only_this=True, limits=limits)
        return found, as_annotated(found.mask, found.labels, embeddings, everything), known

    def _stop_outdated(self, asked: Asked) -> None:
        """What adapts beside for this client to other annotations than there are now would be for nothing."""
        wanted = self._service.subject(asked.support, asked.config)
        for job in self._beside(asked):
            if job.subject is not None and job.subject != wanted:
                with suppress(UnknownJob):  # it has just ended
                    self._service.jobs.cancel(job.id)

    def _beside(self, asked: Asked) -> list[Job]:
        """The adaptations that this client asked for on this image."""
        mine = asked.client, account(), asked.image.source.image_id
        active = self._service.jobs.active(ADAPT, model=self._service.method)
        return [job for job in active if (job.owner, job.login, job.image) == mine]

    def _adapts_beside(self, asked: Asked, name: str) -> Job | None:
        """This client's job that adapts to these annotations, queued now unless there is one; None where there is no
        need. What another client's job adapts to already is found by this one when its turn comes, and stopping the one
        leaves the other."""
        service = self._service
        subject = service.subject(asked.support, asked.config)
        running = [job for job in self._beside(asked) if job.subject == subject]
        if running or asked.wait or not service.worth_adapting(asked.support, asked.config, name):
            return running[0] if running and asked.adapts else None
        job = Job(
            ADAPT,
            title=f"{service.method} adapts to {', '.join(asked.support)}",
            owner=asked.client,
            image=asked.image.source.image_id,
            model=service.method,
            subject=subject,
        )
        return service.jobs.submit(
            job, lambda job: service.adapt_beside(job, lambda: self._labelled(asked.image, asked.command), asked.config)
        )

    def _clicks(self, request: InferenceCommand, image: OpenImage, task: AdaptedTask) -> dict[str, Clicks]:
        """Clicks that mend a proposal: they count only with a ``label``, for viewers leave old ones in requests."""
        label = request.label
        if not label:
            return {}
        prompts = read_prompts(request.options, grid=image.volume.grid, plane=image.embeddings.plane, dimension=3)
        if prompts.empty:
            return {}
        if label not in task.banks:
            raise InvalidRequest(
                f"there are clicks on {label!r}, but no annotated slice shows it; annotated labels: "
                f"{', '.join(task.labels)}. Use sam_2d to begin a new organ"
            )
        return {label: prompts.slices}

    def _values(self, labels: Sequence[str], command: FewShotCommand) -> dict[str, int]:
        """Label -> value in the answer.

        Clients that read the details get the found labels as 1, 2, ...: the others stay untouched on their screen.
        One that replaces its screen never sees the details and maps values by what /info said.
        """
        if command.replaces_screen:
            offered = self._service.offered
            return {label: offered.index(label) + 1 for label in labels}
        return {label: number for number, label in enumerate(labels, 1)}

    def _serve(
        self, image: OpenImage, labels: Sequence[str], proposed: np.ndarray, client: str, clicks: Mapping[str, Clicks]
    ) -> None:
        image_id, plane, when = image.source.image_id, image.embeddings.plane, now()
        for number, label in enumerate(labels if image_id else (), 1):
            mask, prompted = proposed == number, clicks.get(label, ())
            self._service.studies.serve(
                image_id, mask, label=label, client=client, plane=plane, prompted=prompted, when=when
            )


def _told(clicks: Mapping[str, Clicks]) -> str:
    """Equal exactly for equal clicks."""
    return repr([
        (label, index, one.positive.tolist(), one.negative.tolist(), one.box)
        for label, slices in sorted(clicks.items())
        for index, one in sorted(slices.items())
    ])  # fmt: skip


def slice_dice(prediction: Prediction, support: Support, volume: str) -> dict[str, dict[int, float]]:
    """Label -> the Dice that is expected on each slice with a mask that is not annotated yet, the worst first."""
    found = {}
    for number, label in enumerate(prediction.labels):
        annotated = {one.index for one in support.get(label, ()) if one.volume == volume}
        drawn = (prediction.logits[number] > 0).any(axis=(1, 2))
        rows = [row for row in np.argsort(-prediction.uncertainty[number], kind="stable") if drawn[row]]
        dice = {int(prediction.slices[row]): 1 - float(prediction.uncertainty[number, row]) for row in rows}
        found[label] = {index: one for index, one in dice.items() if index not in annotated}
    return found


def hints(dice: Mapping[str, Mapping[int, float]]) -> dict[str, list[int]]:
    """Label -> the slices to look at first, of its :func:`slice_dice`."""
    return {label: [index for index, one in found.items() if one < SURE][:HINTS] for label, found in dice.items()}


def in_words(found: Answer, task: AdaptedTask, *, fresh: bool, beside: bool) -> str:
    """What was proposed, what goes on beside, and where to look first: for people."""
    counts = task.learned_from.items()
    learned = ", ".join(f"{label} from {n} annotated slice{'s' * (n != 1)}" for label, n in counts)
    how = " after adapting to them" if fresh else ""
    said = [f"Proposed {learned}{how}"]
    if task.summarised:
        said.append(FROM_ELSEWHERE)
    if beside:
        said.append("an adaptation runs beside: run again later, it is used if it is better")
    questions = [end_question(index, label) for label, slices in found.asked.items() for index in slices]
    worst = [f"{label} on slice {slices[0]}" for label, slices in found.uncertain.items() if slices]
    if questions:
        said.append(" ".join(questions))
    elif worst:
        said.append(f"look first at {', '.join(worst)}")
    return "; ".join(said)


class MapOptions(Options):
    """How often to ask again without a part of the annotated slices."""

    views: int = Field(default=0, ge=0, le=MOST_VIEWS)


class UncertaintyMap(Task):
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
