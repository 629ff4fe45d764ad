"""Longer training than fits between two clicks, in MONAI Label's own process."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from pydantic import Field

from ssmsam.fewshot.config import HELD_OUT_OF, FewShotConfig, MetaConfig
from ssmsam.fewshot.estimate import Estimate, mean_estimate
from ssmsam.fewshot.meta_learning import MetaTrained, hold_out, judged, meta_train
from ssmsam.fewshot.pipeline import adapt
from ssmsam.fewshot.support import NothingToLearn, digest
from ssmsam.files import write_bytes
from ssmsam.progress import Progress
from ssmsam.server.clients.rest import Options
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.fewshot_service import FewShotService, Limits
from ssmsam.service.jobs import Job

_EVERY_S = 1.0


class Training(TrainTask):
    """Training on what is annotated. Notes in a file how far it is: it runs in another process than who asks."""

    def __init__(self, service: FewShotService, description: str, options: Options) -> None:
        super().__init__(description)
        self._service, self._options = service, options
        self._loss: float | None = None
        self._here = False
        """Whether it runs in this process."""

    def config(self) -> dict[str, Any]:
        return self._options.model_dump()

    def note_loss(self, loss: float) -> None:
        """The loss of a step, for the next note."""
        self._loss = round(loss, 4)

    def stats(self, *, runs: bool = True) -> dict[str, Any]:
        """Of the training that runs or ran last: what viewers draw as progress and accuracy; empty before the first.

        ``runs`` is whether a process trains it. One that was stopped, or whose process died, is not said to go on.
        """
        try:
            found: dict[str, Any] = json.loads(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        if "total_time" in found or runs or self._here:
            return found
        return {**found, "phase": "stopped", "eta_s": None, "total_time": 0.0}

    @abstractmethod
    def require(self, options: Mapping[str, Any]) -> None:
        """Look whether there is something to train on and the options make sense, before a process is started.

        Raises InvalidRequest and NothingToLearn.
        """

    @abstractmethod
    def train(self, options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """What came of it, as JSON. Everything is published in one step: the process may be killed at any moment."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        started = time.time()
        self._here = True
        try:
            result = self.train(request, self._progress(started))
        except NothingToLearn as error:
            raise InvalidRequest(str(error)) from error
        finally:
            self._here = False
        result = {**result, "total_time": round(time.time() - started, 1)}
        self._note(phase="done", epoch=1, total_epochs=1, started=started, **result)
        return result

    def _progress(self, started: float) -> Progress:
        """Notes the phase and the seconds that it will still take, now and then."""
        job, told = Job("train"), 0.0
        job.state = "running"

        def progress(name: str, done: int, total: int) -> None:
            nonlocal told
            job.progress(name, done, total)
            if time.monotonic() - told < _EVERY_S and done < total:
                return
            told = time.monotonic()
            loss = {} if self._loss is None else {"loss": self._loss}
            self._note(phase=name, epoch=done, total_epochs=max(1, total), eta_s=job.eta_s, started=started, **loss)

        return progress

    @property
    def _record(self) -> Path:
        return self._service.registry.folder / "training.json"

    def _note(self, **content: Any) -> None:
        write_bytes(self._record, json.dumps(content).encode())


class FewShotOptions(Options):
    """Of ``fewshot_decoder``."""

    steps: int = Field(default=200, gt=0, le=100_000)
    budget_s: float = Field(default=120.0, gt=0, le=86_400)
    learning_rate: float = Field(default=6e-4, gt=0, lt=1)
    views: int = Field(default=6, ge=0, le=100)
    seed: int = 0


class FewShotTraining(Training):
    """``fewshot_decoder``: fits the few-shot decoder to everything that is annotated, for longer than a click may.

    The result is put into the registry. It answers from then on if the estimate on held-out slices is not worse than
    that of the task checkpoint before it.
    """

    def __init__(self, service: FewShotService) -> None:
        super().__init__(service, "Fits the few-shot model to all annotated slices, thoroughly", FewShotOptions())

    def require(self, options: Mapping[str, Any]) -> None:
        self._configured(options)
        if not self._service.labelled.showing():
            raise NothingToLearn("no annotated slice shows an organ yet: annotate a few slices, then train")

    def train(self, options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        service = self._service
        config = self._configured(options)
        decoder, start = service.start
        task = adapt(service.labelled.support(""), service.embedder, decoder, config=config, progress=progress)
        better = self._better(task.card, service.registry.state.active)
        task = replace(task, card={**task.card, "trained": True})
        name = service.registry.publish(service.signed(task, start), decoder=service.decoder, activate=better)
        return {
            "head": name,
            "activated": better,
            "dice_estimate": task.card["dice_estimate"],
            "learned_from": task.learned_from,
            "best_metric": mean_estimate(task.card),
        }

    def _configured(self, options: Mapping[str, Any]) -> FewShotConfig:
        wanted, config = FewShotOptions.read(options), self._service.config
        adaptation = replace(
            config.adaptation,
            **wanted.model_dump(exclude={"views"}),
            views=replace(config.adaptation.views, views=wanted.views),
        )
        return replace(config, adaptation=adaptation)

    def _better(self, card: Any, before: str) -> bool:
        """Whether a new checkpoint is estimated to be no worse than the one that answers; without estimates it is."""
        if not before:
            return True
        try:
            old = mean_estimate(self._service.registry.card(before))
        except (LookupError, ValueError, OSError):
            return True
        new = mean_estimate(card)
        return old is None or new is None or new >= old - 0.01


LEAST_TASKS = 2
"""A task is a label in one volume. What holds for a single one is no experience."""
MOST_SLICES = 96
"""Of each label."""


class MetaOptions(Options):
    """Of ``ssm_sam_meta``."""

    steps: int = Field(default=60, gt=0, le=100_000)
    budget_s: float = Field(default=300.0, gt=0, le=86_400)
    inner_steps: int = Field(default=3, gt=0, le=100)
    outer_rate: float = Field(default=2e-4, gt=0, lt=1)
    views: int = Field(default=2, ge=0, le=100)
    estimate_steps: int = Field(default=15, ge=0, le=1000)
    seed: int = 0


class MetaTraining(Training):
    """``ssm_sam_meta``: learns from everything that is annotated how to adapt quickly.

    The result is a new start of ``ssm_sam``. It is used from then on unless adaptation gets further from the shipped
    one, on slices that were set aside. Task checkpoints that were adapted before stay what they are.
    """

    def __init__(self, service: FewShotService) -> None:
        description = "Learns a better start of ssm_sam from all annotated labels and images"
        super().__init__(service, description, MetaOptions())

    def require(self, options: Mapping[str, Any]) -> None:
        self._configured(options)
        found = sum(count >= HELD_OUT_OF for count in self._service.labelled.showing().values())
        if found < LEAST_TASKS:
            raise NothingToLearn(
                f"ssm_sam_meta learns from at least {LEAST_TASKS} tasks, a label in an image on {HELD_OUT_OF} or more "
                f"annotated slices that show it, and there are {found}: annotate more slices, or more labels or images"
            )

    def train(self, options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        service = self._service
        assert service.initialisations is not None
        config, steps = self._configured(options)
        support = service.labelled.support("", limits=Limits(others=MOST_SLICES))
        rest, aside = hold_out(support)
        judging = replace(service.config.adaptation, steps=steps)
        before = judged(service.decoder, support, aside, service.embedder, config=judging, progress=progress)
        trained = meta_train(
            rest, service.embedder, service.decoder, config=config, progress=progress, on_loss=self.note_loss
        )
        after = judged(trained.decoder, support, aside, service.embedder, config=judging, progress=progress)
        better = _mean(after) >= _mean(before)
        card = {
            "support_digest": digest(support),
            "encoder": service.embedder.encoder.spec.name,
            "learned_from": {label: len(slices) for label, slices in rest.items()},
            "settings": asdict(config),
            "dice_estimate": {label: one.as_json() for label, one in after.items()},
            "shipped_estimate": {label: one.as_json() for label, one in before.items()},
            **_summary(trained),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        name = service.initialisations.publish(trained.decoder, card, activate=better)
        told = ("learned_from", "dice_estimate", "shipped_estimate", "first_loss", "loss", "steps")
        return {
            "start": name,
            "activated": better,
            "best_metric": round(_mean(after), 4),
            **{key: card[key] for key in told},
        }

    def _configured(self, options: Mapping[str, Any]) -> tuple[MetaConfig, int]:
        """The settings of the training, and how many steps of adaptation the estimate makes."""
        wanted, config = MetaOptions.read(options), MetaConfig()
        views = replace(config.inner.views, views=wanted.views)
        inner = replace(config.inner, steps=wanted.inner_steps, budget_s=wanted.budget_s, views=views)
        outer = wanted.model_dump(include={"steps", "budget_s", "outer_rate", "seed"})
        return replace(config, **outer, inner=inner), wanted.estimate_steps


def _mean(estimates: Mapping[str, Estimate]) -> float:
    return float(np.mean([one.after for one in estimates.values()]))


def _summary(trained: MetaTrained) -> dict[str, Any]:
    """Steps, seconds, and the mean loss of the first and of the last tenth of the steps."""
    losses = trained.losses
    tenth = max(1, len(losses) // 10)
    return {
        "steps": len(losses),
        "seconds": round(trained.seconds, 2),
        "first_loss": round(float(np.mean(losses[:tenth])), 4) if losses else None,
        "loss": round(float(np.mean(losses[-tenth:])), 4) if losses else None,
    }
