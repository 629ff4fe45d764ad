"""Training of what adaptation starts from, in MONAI Label's own process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from ssmsam.fewshot.estimate import Estimate
from ssmsam.fewshot.support import NothingToLearn, digest
from ssmsam.progress import Progress
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.fewshot_room import FewShotRoom
from ssmsam.server.labelled import Limits
from ssmsam.server.training import Training
from ssmsam.ssm.meta_learner import MetaConfig, MetaTrained, meta_train
from ssmsam.ssm.start_estimate import LEAST_SLICES, judged, set_aside

LEAST_TASKS = 2
"""A task is a label in one volume. What holds for a single one is no experience."""
MOST_SLICES = 96
"""Of each label."""


class MetaTraining(Training):
    """``ssm_sam_meta``: learns from everything that is annotated how to adapt quickly.

    The result is a new start of ``ssm_sam``. It is used from then on unless adaptation gets further from the shipped
    one, on slices that were set aside. Heads that were adapted before stay what they are.
    """

    def __init__(self, room: FewShotRoom) -> None:
        super().__init__(room, "Learns a better start of ssm_sam from all annotated labels and images")

    def config(self) -> dict[str, Any]:
        return {
            "steps": 60, "budget_s": 300.0, "inner_steps": 3, "outer_rate": 2e-4, "views": 2, "estimate_steps": 15,
            "seed": 0,
        }  # fmt: skip

    def require(self, options: Mapping[str, Any]) -> None:
        self._configured({**self.config(), **options})
        found = sum(count >= LEAST_SLICES for count in self._room.labelled.showing().values())
        if found < LEAST_TASKS:
            raise NothingToLearn(
                f"ssm_sam_meta learns from at least {LEAST_TASKS} tasks, a label in an image on {LEAST_SLICES} or more "
                f"annotated slices that show it, and there are {found}: annotate more slices, or more labels or images"
            )

    def train(self, options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        room = self._room
        assert room.starts is not None
        config, steps = self._configured(options)
        support = room.labelled.support("", limits=Limits(others=MOST_SLICES))
        rest, aside = set_aside(support)
        judging = replace(room.config.adaptation, steps=steps)
        before = judged(room.decoder, support, aside, room.embedder, config=judging, progress=progress)
        trained = meta_train(rest, room.embedder, room.decoder, config=config, progress=progress, heard=self.hear)
        after = judged(trained.decoder, support, aside, room.embedder, config=judging, progress=progress)
        better = _mean(after) >= _mean(before)
        card = {
            "support_digest": digest(support),
            "encoder": room.embedder.encoder.spec.name,
            "learned_from": {label: len(slices) for label, slices in rest.items()},
            "settings": asdict(config),
            "dice_estimate": {label: one.as_json() for label, one in after.items()},
            "shipped_estimate": {label: one.as_json() for label, one in before.items()},
            **_summary(trained),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        name = room.starts.publish(trained.decoder, card, activate=better)
        told = ("learned_from", "dice_estimate", "shipped_estimate", "first_loss", "loss", "steps")
        return {
            "start": name,
            "activated": better,
            "best_metric": round(_mean(after), 4),
            **{key: card[key] for key in told},
        }

    def _configured(self, options: Mapping[str, Any]) -> tuple[MetaConfig, int]:
        """The settings of the training, and how many steps of adaptation the estimate makes."""
        try:
            steps, inner, views = int(options["steps"]), int(options["inner_steps"]), int(options["views"])
            judging, seed = int(options["estimate_steps"]), int(options["seed"])
            budget, rate = float(options["budget_s"]), float(options["outer_rate"])
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"the training's options have to be numbers: {error}") from error
        if not (0 < steps <= 100_000 and 0 < inner <= 100 and 0 < budget <= 86_400 and 0 < rate < 1):
            raise InvalidRequest("steps, inner_steps (at most 100), budget_s and outer_rate have to be above 0")
        if not (0 <= views <= 100 and 0 <= judging <= 1000):
            raise InvalidRequest("views has to be between 0 and 100, estimate_steps between 0 and 1000")
        config = MetaConfig()
        config = replace(
            config,
            steps=steps,
            budget_s=budget,
            outer_rate=rate,
            inner=replace(config.inner, steps=inner, budget_s=budget, views=replace(config.inner.views, views=views)),
            seed=seed,
        )
        return config, judging


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
