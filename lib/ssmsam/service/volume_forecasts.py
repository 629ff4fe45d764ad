"""What is known of images slice by slice, gathered for whoever chooses the next ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from ssmsam.active.forecast import descriptors, expect, prompted
from ssmsam.active.volume_state import Forecast, VolumeState
from ssmsam.cache import Cache
from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.support import Support, digest
from ssmsam.ops import evenly_spaced
from ssmsam.progress import Busy, Cancelled
from ssmsam.service.fewshot_service import FewShotService

STORED_AXIS = 0
MOST_SLICES, FEWEST_SLICES = 96, 12
"""How many slices of a volume are looked at, at most and at least, however many it has."""
_KEPT = 64
"""Forecasts of as many images and states of annotation: a guess. They are sums by slice, not masks."""


class Deadline:
    """A stretch of time that work may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def progress(self, phase: str, done: int, total: int) -> None:
        """A :data:`~ssmsam.progress.Progress` that stops the work in time."""
        if not self.left:
            raise Cancelled


@dataclass(frozen=True, eq=False)
class VolumeForecast:
    """One image: what is known of its slices, and the checkpoint that was asked ("" for none)."""

    image: str
    state: VolumeState
    checkpoint: str = ""


class VolumeForecasts:
    """Makes forecasts, without an encoder pass where a volume is embedded. Safe for threads.

    Forecasts are kept until the task checkpoint, the annotations or the image change.
    """

    def __init__(self, service: FewShotService) -> None:
        self.service = service
        self._kept: Cache[tuple[object, ...], dict[str, Forecast]] = Cache(_KEPT)
        self._prompted: Cache[tuple[object, ...], AdaptedTask] = Cache(1)
        """For the next image that is compared: what is annotated is the same."""
        self._seconds = 0.1
        """For one label on one slice, as it took the last time."""

    def annotated(self, image: str) -> dict[str, dict[int, bool]]:
        """Label -> annotated stored slice -> whether the label was seen there."""
        found: dict[str, dict[int, bool]] = {}
        for key, entry in self.service.studies.annotations(image).slices.items():
            if key.axis == STORED_AXIS:
                found.setdefault(key.label, {})[key.index] = not entry.empty
        return found

    def learnable(self) -> list[str]:
        """The labels that some annotated slice shows, in any image."""
        return list(self.service.studies.support().only(nonempty=True).labels)

    def of(self, image: str, labels: Sequence[str], *, deadline: Deadline) -> VolumeForecast:
        """An image with forecasts of those of the ``labels`` that were annotated anywhere.

        Embeds some slices, as long as the deadline allows, only where none is embedded. Without forecasts where other
        long work is done until then. Raises NotKnown and UnreadableVolume.
        """
        embeddings = self.service.images.embeddings(image)
        done = np.flatnonzero(embeddings.done)
        if not len(done):
            with suppress(Cancelled, Busy), self.service.jobs.turns.long(within=deadline.left):
                embeddings.embed(evenly_spaced(embeddings.count, FEWEST_SLICES), progress=deadline.progress)
            done = np.flatnonzero(embeddings.done)
        learnable = set(self.learnable())
        known = [label for label in labels if label in learnable]
        count = int(deadline.seconds / (self._seconds * max(1, len(known))))
        annotated = self.annotated(image)
        slices = done[evenly_spaced(len(done), min(MOST_SLICES, max(FEWEST_SLICES, count)))].tolist()
        slices = sorted({*slices, *(_around(annotated, known) & set(done.tolist()))})
        expected: dict[str, Forecast] = {}
        if known and slices:
            with suppress(Busy):
                expected = self._forecasts(image, embeddings, slices, known, within=deadline.left)
            slices = next((one.slices.tolist() for one in expected.values()), slices)
        state = VolumeState(
            count=embeddings.count,
            slice_mm=embeddings.slice_mm,
            descriptors=descriptors(embeddings, slices),
            annotated=annotated,
            forecasts=expected,
        )
        return VolumeForecast(image, state, self.service.registry.state.active if expected else "")

    def bare(self, image: str) -> VolumeForecast:
        """An image with its annotations and nothing else, at no cost."""
        embeddings = self.service.images.embeddings(image)
        state = VolumeState(embeddings.count, embeddings.slice_mm, annotated=self.annotated(image))
        return VolumeForecast(image, state)

    def task(self, image: str, labels: Sequence[str]) -> tuple[AdaptedTask, str]:
        """The checkpoint that answers now, shown what is annotated now, and its name ("" where none was adapted yet).

        Only a pinned task checkpoint is shown nothing new. Raises InvalidRequest for labels that are not annotated.
        """
        service, state = self.service, self.service.registry.state
        active = service.kept(state.active) if state.active else None
        if active is not None and state.pinned:
            return active, state.active
        support = service.labelled.support(image, labels=labels)
        if active is not None and _is_prompted_by(active, support):
            return replace(active, roi_banks={}), state.active
        name = "" if active is None else state.active
        decoder, origin = service.start if active is None else (active.decoder, active.card.get("created"))
        key = digest(support), name, origin
        return self._prompted.recalled(key, lambda: prompted(support, service.embedder, decoder)), name

    def _forecasts(
        self, image: str, embeddings: VolumeEmbeddings, slices: list[int], labels: list[str], *, within: float
    ) -> dict[str, Forecast]:
        """As they were made before, perhaps on fewer slices, or made now. Raises Busy after so many seconds' wait."""
        state = self.service.registry.state
        support = self.service.labelled.support(image, labels=labels)
        embedded = int(embeddings.done.sum())
        key = (state.active, state.pinned, digest(support), embeddings.key.digest, embedded)

        def made() -> dict[str, Forecast]:
            with self.service.jobs.turns.long(within=within):
                task, _ = self.task(image, labels)
                started = time.monotonic()
                expected = expect(task, embeddings, slices, config=self.service.config)
            self._seconds = (time.monotonic() - started) / (len(slices) * max(1, len(expected)))
            return {label: one.forecast for label, one in expected.items() if label in labels}

        return self._kept.recalled(key, made)


def _is_prompted_by(task: AdaptedTask, support: Support) -> bool:
    """Whether a checkpoint holds what :func:`prompted` would make of these slices, and nothing more."""
    plain = not (task.card.get("adapted") or task.pseudo_labelled or task.summarised)
    return plain and task.card.get("support_digest") == digest(support)


def _around(annotated: Mapping[str, Mapping[int, bool]], labels: Sequence[str]) -> set[int]:
    """The annotated slices of the labels, and those just past the outermost that show them: without these it is not
    known there what was annotated."""
    found: set[int] = set()
    for label in labels:
        known = annotated.get(label, {})
        shown = [index for index, seen in known.items() if seen]
        found |= set(known) | ({min(shown) - 1, max(shown) + 1} if shown else set())
    return found
