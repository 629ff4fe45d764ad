"""Longer training than fits between two clicks, in MONAI Label's own process."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from ssmsam.fewshot.estimate import mean_estimate
from ssmsam.fewshot.method import FewShotConfig, adapt
from ssmsam.fewshot.support import NothingToLearn
from ssmsam.imaging.writing import write_bytes
from ssmsam.progress import Progress
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.fewshot_room import FewShotRoom
from ssmsam.service.jobs import Job

_EVERY_S = 1.0


class Training(TrainTask):
    """Training on what is annotated. Notes in a file how far it is: it runs in another process than who asks."""

    def __init__(self, room: FewShotRoom, description: str) -> None:
        super().__init__(description)
        self._room = room
        self._loss: float | None = None
        self._here = False
        """Whether it runs in this process."""

    def hear(self, loss: float) -> None:
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
            result = self.train({**self.config(), **request}, self._progress(started))
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
        return self._room.shelf.folder / "training.json"

    def _note(self, **content: Any) -> None:
        write_bytes(self._record, json.dumps(content).encode())


class FewShotTraining(Training):
    """``fewshot_decoder``: fits the few-shot decoder to everything that is annotated, for longer than a click may.

    The result is put on the shelf of heads. It answers from then on if the estimate on held-out slices is not worse
    than that of the head before it.
    """

    def __init__(self, room: FewShotRoom) -> None:
        super().__init__(room, "Fits the few-shot model to all annotated slices, thoroughly")

    def config(self) -> dict[str, Any]:
        return {"steps": 200, "budget_s": 120.0, "learning_rate": 6e-4, "views": 6, "seed": 0}

    def require(self, options: Mapping[str, Any]) -> None:
        self._configured({**self.config(), **options})
        if not self._room.labelled.showing():
            raise NothingToLearn("no annotated slice shows an organ yet: annotate a few slices, then train")

    def train(self, options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        room = self._room
        config = self._configured(options)
        decoder, start = room.start
        head = adapt(room.labelled.support(""), room.embedder, decoder, config=config, progress=progress)
        better = self._better(head.card, room.shelf.state.active)
        head = replace(head, card={**head.card, "trained": True})
        name = room.shelf.publish(room.signed(head, start), decoder=room.decoder, activate=better)
        return {
            "head": name,
            "activated": better,
            "dice_estimate": head.card["dice_estimate"],
            "learned_from": head.learned_from,
            "best_metric": mean_estimate(head.card),
        }

    def _configured(self, options: Mapping[str, Any]) -> FewShotConfig:
        try:
            steps, budget = int(options["steps"]), float(options["budget_s"])
            rate, views, seed = float(options["learning_rate"]), int(options["views"]), int(options["seed"])
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"the training's options have to be numbers: {error}") from error
        if not (0 < steps <= 100_000 and 0 < budget <= 86_400 and 0 < rate < 1 and 0 <= views <= 100):
            raise InvalidRequest("steps, budget_s and learning_rate have to be above 0, views at most 100")
        config = self._room.config
        adaptation = replace(
            config.adaptation,
            steps=steps,
            budget_s=budget,
            learning_rate=rate,
            seed=seed,
            views=replace(config.adaptation.views, views=views),
        )
        return replace(config, adaptation=adaptation)

    def _better(self, card: Any, before: str) -> bool:
        """Whether a new head is estimated to be no worse than the one that answers; without estimates it is."""
        if not before:
            return True
        try:
            old = mean_estimate(self._room.shelf.card(before))
        except (LookupError, ValueError, OSError):
            return True
        new = mean_estimate(card)
        return old is None or new is None or new >= old - 0.01
