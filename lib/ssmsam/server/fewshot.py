"""The automatic model: learns from the annotated slices, proposes the rest. A thin front on ``ssmsam.fewshot``.

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
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.active.reasons import end_question
from ssmsam.annotation.truth import now
from ssmsam.fewshot.correcting import Clicks
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.method import FewShotConfig, segment
from ssmsam.fewshot.segmentation import Prediction, as_annotated
from ssmsam.fewshot.support import Support, digest
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.progress import Progress
from ssmsam.prompting.request import PromptRequest
from ssmsam.prompting.wire import read_flag
from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.answer import centroids, write_mask
from ssmsam.server.clients.ohif import replaces_its_screen
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.fewshot_room import ADAPT, FewShotRoom
from ssmsam.server.images import OpenImage
from ssmsam.server.labelled import Limits
from ssmsam.server.prompted import progress_of
from ssmsam.service.answers import Answer
from ssmsam.service.jobs import Job, UnknownJob, account
from ssmsam.ssm.methods import SSM_SAM

HINTS = 3
"""How many uncertain slices of each label the answer names."""

FROM_ELSEWHERE = (
    "the annotated slices of this checkpoint are not on this server, so that masks are less exact than with them: "
    "annotate a few slices here and run without it"
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
    labels: tuple[str, ...]
    only_this: bool
    support: Support
    config: FewShotConfig
    wait: bool

    @property
    def adapts(self) -> bool:
        return self.config.adaptation.steps > 0


class FewShotTask(InferTask):
    """``fewshot`` and ``ssm_sam``: all annotated labels in one image."""

    def __init__(self, room: FewShotRoom) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={label: number for number, label in enumerate(room.labels, 1)},
            dimension=3,
            description=DESCRIPTIONS[room.method],
            config={
                # the closed form is enough where a decoder has learned to use it; who asks for gradient steps gets them
                "adapt": room.method != FEWSHOT or not room.decoder.pretrained,
                "wait": False,
                "only_this_image": False,
                "budget_s": room.config.adaptation.budget_s,
            },
        )
        self._room = room

    def is_valid(self) -> bool:
        return True

    def info(self) -> dict[str, Any]:
        labels = {label: number for number, label in enumerate(self._room.offered, 1)}
        return {**super().info(), "labels": labels}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """``request`` holds the viewer's parameters and ``image``, a :class:`~ssmsam.server.images.Source`.

        Returns the path of the label map and the details. Raises InvalidRequest, UnreadableVolume.
        """
        started = time.perf_counter()
        room, options = self._room, {**self.config(), **request}
        asked = self._asked(options)
        image, progress = asked.image, progress_of(request)
        self._stop_outdated(asked)
        head, name, fresh = room.head(
            asked.support, asked.config, volume=image.embeddings.key.digest, wait=asked.wait, progress=progress
        )
        adapted = time.perf_counter()
        clicks = self._clicks(options, image, head)
        found, known = self._answer(asked, head, name, clicks, progress)
        segmented = time.perf_counter()
        values = self._values(found.labels, options)
        mask = _with_values(found, values)
        if replaces_its_screen(options):
            self._keep_the_rest(image, mask, values, asked.client)
        path = write_mask(mask, image.volume, options)
        self._serve(image, found, asked.client, clicks)
        beside = self._adapts_beside(asked, name)
        room.background.prefer(image, client=asked.client)
        done = time.perf_counter()
        return path, {
            "label_names": values,
            "centroids": centroids(mask, values),
            "detail": in_words(found, head, fresh=fresh, beside=beside is not None),
            "method": room.method,
            "head": name,
            "start": head.card.get("start", ""),
            "adapted": bool(head.card.get("adapted")),
            "adapted_now": fresh,
            "job": beside and beside.id,
            "answered_before": known,
            "dice_estimate": head.card["dice_estimate"],
            "expected_dice": {label: round(value, 3) for label, value in found.expected.items()},
            "learned_from": head.learned_from,
            "support_here": not head.summarised,
            "asked_slices": dict(found.asked),
            "uncertain_slices": dict(found.uncertain),
            "latencies": {
                "pre": round(adapted - started, 4), "infer": round(segmented - adapted, 4), "post": 0.0,
                "write": round(done - segmented, 4), "total": round(done - started, 4),
            },
            "encoder": room.embedder.encoder.spec.name,
            "encoder_sha256": room.embedder.encoder.weights_sha256,
            "encoded_slices": room.embedder.encoded,
        }  # fmt: skip

    def _asked(self, options: Mapping[str, Any]) -> Asked:
        """Read a request. Raises InvalidRequest, also where no slice is annotated."""
        room = self._room
        image, labels = room.images.open(options["image"]), self._wanted(options)
        only_this = read_flag(options["only_this_image"], "only_this_image")
        support = room.labelled.support(image.source.image_id, labels=labels, only_this=only_this)
        if not support:
            raise InvalidRequest(
                "no slice is annotated yet: draw an organ on a few slices and submit, or click on it with sam_2d and "
                "run accept_slice; then run this model again"
            )
        return Asked(
            image,
            str(options.get("client_id") or ""),
            tuple(labels),
            only_this,
            support,
            self._adaptation(options),
            # a decoder that knows no organ yet says little before it has adapted
            read_flag(options["wait"], "wait") or not room.start[0].pretrained,
        )

    def _answer(
        self, asked: Asked, head: Head, name: str, clicks: Mapping[str, Clicks], progress: Progress
    ) -> tuple[Answer, bool]:
        """What the head says of the image, and whether that was known already: kept while nothing changes."""
        room, embeddings = self._room, asked.image.embeddings
        key = (
            room.method, name, head.card["created"], digest(asked.support), embeddings.key.digest, _told(clicks),
            room.config.segmentation,
        )  # fmt: skip

        def made() -> Answer:
            prediction = segment(
                embeddings, head, support=asked.support, clicks=clicks, config=room.config, progress=progress
            )
            return Answer(
                prediction.labels,
                prediction.mask,
                hints(prediction, asked.support, embeddings.key.digest),
                {label: list(slices) for label, slices in prediction.asked.items()},
                dict(prediction.dice),
            )

        found, known = room.answers.recalled(key, made)
        return self._as_annotated(found, asked), known

    def _as_annotated(self, found: Answer, asked: Asked) -> Answer:
        """With every annotated slice of this volume as it was annotated: the head was shown a part of them at most."""
        room, image_id = self._room, asked.image.source.image_id
        everything = room.labelled.support(image_id, only_this=True, limits=Limits(own=sys.maxsize, others=0))
        mask = as_annotated(found.mask, found.labels, asked.image.embeddings, everything)
        return replace(found, mask=mask)

    def _stop_outdated(self, asked: Asked) -> None:
        """What adapts beside for this client to other annotations than there are now would be for nothing."""
        wanted = self._room.subject(asked.support, asked.config)
        for job in self._beside(asked):
            if job.subject is not None and job.subject != wanted:
                with suppress(UnknownJob):  # it has just ended
                    self._room.jobs.cancel(job.id)

    def _beside(self, asked: Asked) -> list[Job]:
        """The adaptations that this client asked for on this image."""
        mine = asked.client, account(), asked.image.source.image_id
        active = self._room.jobs.active(ADAPT, model=self._room.method)
        return [job for job in active if (job.owner, job.login, job.image) == mine]

    def _adapts_beside(self, asked: Asked, name: str) -> Job | None:
        """This client's job that adapts to these annotations, queued now unless there is one; None where there is no
        need. What another client's job adapts to already is found by this one when its turn comes, and stopping the one
        leaves the other."""
        room = self._room
        subject = room.subject(asked.support, asked.config)
        running = [job for job in self._beside(asked) if job.subject == subject]
        if running or asked.wait or not room.worth_adapting(asked.support, asked.config, name):
            return running[0] if running and asked.adapts else None
        image_id = asked.image.source.image_id

        def read() -> Support:
            return room.labelled.support(image_id, labels=asked.labels, only_this=asked.only_this)

        job = Job(
            ADAPT,
            title=f"{room.method} adapts to {', '.join(asked.support)}",
            owner=asked.client,
            image=image_id,
            model=room.method,
            subject=subject,
        )
        return room.jobs.submit(job, lambda job: room.adapt_beside(job, read, asked.config))

    def _wanted(self, options: Mapping[str, Any]) -> list[str]:
        """The labels asked for: by name, or by number as viewers with class prompts send them; none means all."""
        numbers, offered = options.get("label_prompt"), self._room.offered
        if numbers:
            if not isinstance(numbers, list) or not all(
                str(n).isdigit() and 0 < int(n) <= len(offered) for n in numbers
            ):
                raise InvalidRequest(f"label_prompt has to be a list of numbers from 1 to {len(offered)}, as in /info/")
            return [offered[int(n) - 1] for n in numbers]
        names = options.get("labels")
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",") if name.strip()]
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise InvalidRequest("labels has to be a list of names, or names separated by commas")
        return names or []

    def _clicks(self, options: Mapping[str, Any], image: OpenImage, head: Head) -> dict[str, Clicks]:
        """Clicks that mend a proposal: they count only with a ``label``, for viewers leave old ones in requests."""
        label = str(options.get("label") or "")
        if not label:
            return {}
        prompts = PromptRequest.parse(options, grid=image.volume.grid, plane=image.embeddings.plane, dimension=3)
        if prompts.empty:
            return {}
        if label not in head.banks:
            raise InvalidRequest(
                f"there are clicks on {label!r}, but no annotated slice shows it; annotated labels: "
                f"{', '.join(head.labels)}. Use sam_2d to begin a new organ"
            )
        return {label: prompts.slices}

    def _adaptation(self, options: Mapping[str, Any]) -> FewShotConfig:
        config = self._room.config
        try:
            budget = float(options["budget_s"])
        except (TypeError, ValueError):
            raise InvalidRequest(f"budget_s has to be a number of seconds, got {options['budget_s']!r}") from None
        if not 0 < budget <= 3600:
            raise InvalidRequest(f"budget_s has to be between 0 and 3600 seconds, got {budget:g}")
        adaptation = replace(config.adaptation, budget_s=budget)
        if not read_flag(options["adapt"], "adapt"):
            return replace(config, adaptation=replace(adaptation, steps=0), folds=0)
        return replace(config, adaptation=adaptation)

    def _values(self, labels: Sequence[str], options: Mapping[str, Any]) -> dict[str, int]:
        """Label -> value in the answer.

        Clients that read the details get the found labels as 1, 2, ...: the others stay untouched on their screen.
        OHIF never sees the details and maps values by what /info said.
        """
        if replaces_its_screen(options):
            offered = self._room.offered
            return {label: offered.index(label) + 1 for label in labels}
        return {label: number for number, label in enumerate(labels, 1)}

    def _keep_the_rest(self, image: OpenImage, answer: np.ndarray, values: dict[str, int], client: str) -> None:
        """Add what else is on the screen of a viewer that is about to replace all of it.

        What it asked for without a label cannot be told apart there, so it goes, and nobody can accept it any more.
        """
        datastore = self._room.datastore
        if not image.source.image_id or not isinstance(datastore, AnnotatedStudies):
            return
        found, offered = set(values), self._room.offered
        for label, mask in datastore.screen(image.source.image_id, client=client).items():
            if label in found:
                continue
            kept = mask & (answer == 0) if label in offered else np.zeros_like(mask)
            if kept.any():
                values[label] = offered.index(label) + 1
                answer[kept] = values[label]
            if mask.any():
                datastore.serve(image.source.image_id, kept, label=label, client=client, plane=image.embeddings.plane)

    def _serve(self, image: OpenImage, found: Answer, client: str, clicks: Mapping[str, Clicks]) -> None:
        datastore = self._room.datastore
        if not image.source.image_id or not isinstance(datastore, AnnotatedStudies):
            return
        when = now()
        for number, label in enumerate(found.labels, 1):
            mask = found.mask == number
            plane = image.embeddings.plane
            datastore.serve(
                image.source.image_id,
                mask,
                label=label,
                client=client,
                plane=plane,
                prompted=clicks.get(label, ()),
                when=when,
            )


def _told(clicks: Mapping[str, Clicks]) -> str:
    """Equal exactly for equal clicks."""
    return repr([
        (label, index, one.positive.tolist(), one.negative.tolist(), one.box)
        for label, slices in sorted(clicks.items())
        for index, one in sorted(slices.items())
    ])  # fmt: skip


def _with_values(found: Answer, values: Mapping[str, int]) -> np.ndarray:
    table = np.array([0, *(values[label] for label in found.labels)], dtype=np.uint8)
    return table[found.mask]


def hints(prediction: Prediction, support: Support, volume: str) -> dict[str, list[int]]:
    """Label -> the slices, not annotated yet, whose masks are least sure of themselves, the worst first."""
    found = {}
    for number, label in enumerate(prediction.labels):
        annotated = {one.index for one in support.get(label, ()) if one.volume == volume}
        doubt = prediction.uncertainty[number] * ~np.isin(prediction.slices, list(annotated))
        worst = np.argsort(-doubt, kind="stable")[:HINTS]
        found[label] = [int(prediction.slices[row]) for row in worst if doubt[row] > 0.02]
    return found


def in_words(found: Answer, head: Head, *, fresh: bool, beside: bool) -> str:
    """What was proposed, what goes on beside, and where to look first: for people."""
    counts = head.learned_from.items()
    learned = ", ".join(f"{label} from {n} annotated slice{'s' * (n != 1)}" for label, n in counts)
    how = " after adapting to them" if fresh else ""
    said = [f"Proposed {learned}{how}"]
    if head.summarised:
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
