"""Which image to annotate next, and which slices of it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from ssmsam.active.acquisition import RULES
from ssmsam.active.volume_state import Choice
from ssmsam.server.clients.rest import NextSampleCommand
from ssmsam.server.clients.slicer import ALL_ANNOTATED, FOR_LABEL, title
from ssmsam.server.datastore.studies import StudiesDatastore
from ssmsam.service.errors import InvalidRequest, StudiesNotWritable
from ssmsam.service.images import UNUSABLE, Images
from ssmsam.service.volume_forecasts import Deadline, VolumeForecast, VolumeForecasts

logger = logging.getLogger(__name__)

CLIENT_AXIS = 2
"""Of the stored slices in a client's [i, j, k]."""
MOST_VOLUMES = 8
"""Images that are compared for one choice, at most."""
UNREADABLE = "nothing is left to annotate: the {} images that are not finished cannot be read; GET /info/ says why"
FINISHED = "nothing is left to annotate: every image is finished"
EXHAUSTED = (
    "nothing is left to annotate: every slice of the images that are not finished is annotated for these labels; "
    "run finish_volume on them, or choose another label"
)
DESCRIPTIONS = {
    "next_slices": "The slices whose annotation mends most of what is expected to be wrong; first where organs end",
    "uncertainty": "The slices of whose masks the model is least sure",
    "representative": "Slices that look least like those annotated so far; needs no annotation",
    "foreground_random": "Random slices among those that seem to show the organ",
    "random": "Random slices of a random image, rather one that was not offered lately",
}


class First(Strategy):
    """The images in the order of their names, one after the other. What cannot be read is passed over."""

    def __init__(self, images: Images) -> None:
        super().__init__("The first image, by name, that has no finished label")
        self._images = images

    def __call__(self, request: dict[str, Any], datastore: StudiesDatastore) -> dict[str, Any] | None:
        unfinished = sorted(datastore.get_unlabeled_images())
        for image in self._images.usable(unfinished):
            try:
                self._images.embeddings(image)
            except UNUSABLE:
                continue
            return {"id": image}
        return {"message": UNREADABLE.format(len(unfinished))} if unfinished else None


class SliceStrategy(Strategy):
    """Names an image and slices of it, with reasons. ``rule`` is one of :data:`~ssmsam.active.acquisition.RULES`."""

    def __init__(self, forecasts: VolumeForecasts, *, rule: str) -> None:
        super().__init__(DESCRIPTIONS[rule])
        self._forecasts = forecasts
        self._rule = rule

    def info(self) -> dict[str, Any]:
        """With ``config``, the options that viewers offer and send."""
        labels = [ALL_ANNOTATED, *self._forecasts.service.offered]
        return {
            **super().info(),
            "config": {"k": NextSampleCommand().k, FOR_LABEL: labels, "budget_s": NextSampleCommand().budget_s},
        }

    def __call__(self, request: dict[str, Any], datastore: StudiesDatastore) -> dict[str, Any]:
        """``k`` slices for ``labels`` (by default all that are annotated), in ``image`` (by default any).

        ``{"message": ...}`` when nothing is left. Raises InvalidRequest and NotKnown.
        """
        wanted = NextSampleCommand.of(request)
        images = self._images(wanted, datastore, request)
        if not images:
            return {"message": FINISHED}
        usable = images if wanted.image else self._forecasts.service.images.usable(images)
        deadline = Deadline(wanted.budget_s)
        labels = list(wanted.labels) or self._forecasts.learnable()
        found: list[tuple[float, VolumeForecast, list[Choice]]] = []
        looked_at = 0
        for image in usable:
            if looked_at >= MOST_VOLUMES or (found and not deadline.left):
                break
            try:
                volume_forecast = self._forecast(image, labels, deadline)
            except UNUSABLE:
                if wanted.image:
                    raise
                continue  # it is set aside now; another one can be annotated meanwhile
            looked_at += 1
            choices = RULES[self._rule](volume_forecast.state, wanted.k, labels, np.random.default_rng())
            if choices:
                found.append((sum(one.gain for one in choices), volume_forecast, choices))
                if not self._compares(volume_forecast):
                    break
        if not found:
            return {"message": EXHAUSTED if looked_at else UNREADABLE.format(len(images))}
        _, volume_forecast, choices = max(found, key=lambda one: one[0])
        return answer(volume_forecast, choices)

    def _forecast(self, image: str, labels: Sequence[str], deadline: Deadline) -> VolumeForecast:
        """Raises one of UNUSABLE; the image is set aside then."""
        service = self._forecasts.service
        with service.images.reading(image), service.jobs.turns.pausing():
            if self._rule == "random":
                return self._forecasts.bare(image)
            return self._forecasts.of(image, labels, deadline=deadline)

    def _compares(self, volume_forecast: VolumeForecast) -> bool:
        """Whether other images may be better: only expectations of a model can be compared."""
        return self._rule in ("next_slices", "uncertainty") and bool(volume_forecast.state.forecasts)

    def _images(self, wanted: NextSampleCommand, datastore: StudiesDatastore, request: Mapping[str, Any]) -> list[str]:
        """Images that are not finished: the one that is being annotated before others, then what was offered long ago.
        By ``random`` in random order."""
        images = sorted(datastore.get_unlabeled_images())
        if wanted.image:
            self._forecasts.service.images.require(wanted.image)
            if wanted.image not in images:
                raise InvalidRequest(f"{wanted.image} is finished: reopen it first, or name no image")
            return [wanted.image]
        if self._rule == "random":
            return by_chance(images, datastore, request)
        begun = set(datastore.support().images)
        return sorted(images, key=lambda image: (image not in begun, offered(datastore, image, request), image))


def answer(volume_forecast: VolumeForecast, choices: Sequence[Choice]) -> dict[str, Any]:
    """What a client is told: fields that viewers show, and for programs slices by label and reasons by slice."""
    by_label: dict[str, list[int]] = {}
    for one in sorted(choices, key=lambda choice: choice.index):
        for label in one.labels:
            by_label.setdefault(label, []).append(one.index)
    slices = sorted(one.index for one in choices)
    reasons = [(one.index, label, reason) for one in choices for label, reason in one.reasons.items()]
    questions = [reason.sentence for _, _, reason in reasons if reason.numbers.get("find_end")]
    hint = "; ".join([*questions, slices_hint(slices, by_label)])
    return {
        "id": volume_forecast.image,
        "PatientID": title(volume_forecast.image, hint),
        "hint": hint,
        "slices": slices,
        "axis": CLIENT_AXIS,
        "labels": list(by_label),
        "slices_by_label": by_label,
        "why": list(dict.fromkeys(reason.sentence for _, _, reason in reasons)),
        "reasons": [
            {"slice": index, "label": label, "why": reason.sentence, **reason.numbers}
            for index, label, reason in reasons
        ],
        "head": volume_forecast.checkpoint,
    }


def slices_hint(slices: Sequence[int], by_label: Mapping[str, Sequence[int]]) -> str:
    """As in "slices 31,58,90", or where labels want different ones "liver 31,58; spleen 90"."""
    if all(list(wanted) == list(slices) for wanted in by_label.values()):
        return f"slices {','.join(map(str, slices))}"
    return "; ".join(f"{label} {','.join(map(str, wanted))}" for label, wanted in by_label.items())


def by_chance(images: Sequence[str], datastore: StudiesDatastore, request: Mapping[str, Any]) -> list[str]:
    """All images in random order, with those rather in front that were not offered for long."""
    now = time.time()
    # at least one second, so that images which were all offered just now can still be drawn
    waited = {image: max(1.0, now - offered(datastore, image, request)) for image in images}
    return sorted(images, key=lambda image: random.expovariate(waited[image]))


def offered(datastore: StudiesDatastore, image: str, request: Mapping[str, Any]) -> float:
    """When this strategy offered the image last, in seconds since 1970."""
    offers = datastore.get_image_info(image).get("strategy")
    last = offers.get(request.get("strategy")) if isinstance(offers, dict) else None
    return float(last.get("ts", 0)) if isinstance(last, dict) else 0.0


def note_offer(datastore: StudiesDatastore, image: str, strategy: str, *, client: str) -> dict[str, Any]:
    """Remember when a strategy offered an image and to whom; what the datastore says of the image."""
    info: dict[str, Any] = datastore.get_image_info(image)
    offers = info.get("strategy")
    offers = {**(offers if isinstance(offers, dict) else {}), strategy: {"ts": int(time.time()), "client_id": client}}
    try:
        datastore.update_image_info(image, {"strategy": offers})
    except (OSError, StudiesNotWritable):  # a folder that cannot be written to can still be looked at
        logger.warning("it could not be noted that %s was offered", image)
    return info
