"""The loop of trainings that count their steps: resumable, with a learning curve, and nothing lost when stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from ssmsam.progress import Progress
from ssmsam_research.training.checkpoint import write_weights


class Trainer(Protocol):
    """What is trained, with all that a checkpoint of it holds."""

    step: int
    seconds: float

    @property
    def average(self) -> nn.Module:
        """The moving average of the weights: what is kept."""

    def save(self, path: Path) -> None:
        """Write a checkpoint."""


def train_steps(
    trainer: Trainer,
    train_step: Callable[[], dict[str, float]],
    *,
    steps: int,
    out: Path,
    log_every: int,
    checkpoint_s: float,
    metadata: dict[str, str],
    progress: Progress,
) -> None:
    """Call ``train_step``, which gives its losses by name, until ``trainer`` has made ``steps`` in all.

    Writes the averaged weights to ``out`` with ``metadata``, a checkpoint beside it (``.ckpt``), both every
    ``checkpoint_s`` seconds and at the end, and the learning curve (``.jsonl``) every ``log_every`` steps.
    """
    started = last_save = time.monotonic()
    before, losses = trainer.seconds, []
    while True:
        losses.append(train_step())
        now = time.monotonic()
        trainer.seconds = before + now - started
        progress("train", trainer.step, steps)
        if len(losses) == log_every:
            log_losses(out, trainer.step, trainer.seconds, losses)
            losses = []
        finished = trainer.step >= steps
        if finished or now - last_save > checkpoint_s:
            trainer.save(out.with_suffix(".ckpt"))
            write_weights(out, trainer.average.state_dict(), metadata)
            last_save = now
        if finished:
            return


def log_losses(out: Path, step: int, seconds: float, losses: Sequence[dict[str, float]]) -> None:
    """Add the mean of each loss to the learning curve beside ``out``."""
    names = sorted({name for one in losses for name in one})
    means = {name: round(float(np.mean([one[name] for one in losses if name in one])), 4) for name in names}
    line = {"step": step, "seconds": round(seconds, 1), "loss": means}
    with out.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
