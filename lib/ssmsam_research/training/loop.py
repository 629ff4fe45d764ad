"""What every training of ours keeps: checkpoints to go on from, a moving average, and weights files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ssmsam.files import whole_file
from ssmsam.models.prompt_small import Answer
from ssmsam.progress import Progress

OTHERS = 0.15
"""Weight of the mean over all candidates beside the best one, so that none of them dies."""


def answer_loss(answer: Answer, target: torch.Tensor, judged_presence: torch.Tensor) -> torch.Tensor:
    """Loss of an answer to N targets (N, 1, S, S) in [0, 1].

    The best of the candidates is trained by Dice and cross-entropy (Kirillov et al., 2023, train the one with the
    least loss); the predicted quality learns each candidate's true IoU; presence counts where
    ``judged_presence`` (N,) says that no click gave it away.
    """
    present = (target.amax((1, 2, 3)) > 0.5).float()
    masks = mask_losses(answer.logits, target, present)
    best = masks.min(dim=1).values + OTHERS * masks.mean(dim=1)
    quality = F.mse_loss(answer.quality.sigmoid(), iou_of(answer.logits.detach(), target), reduction="none").mean(1)
    presence = F.binary_cross_entropy_with_logits(answer.presence, present, reduction="none")
    return (best + 0.5 * quality + 0.25 * presence * judged_presence).mean()


def mask_losses(logits: torch.Tensor, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """(N, K): Dice where the target is present, cross-entropy everywhere."""
    truth = target.expand_as(logits)
    probability = logits.sigmoid()
    overlap = 2 * (probability * truth).sum((2, 3)) + 1
    dice = 1 - overlap / (probability.sum((2, 3)) + truth.sum((2, 3)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((2, 3))
    return dice * present[:, None] + 3 * entropy


def iou_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(N, K) of thresholded masks; two empty masks agree fully."""
    answer, truth = logits > 0, target > 0.5
    union = (answer | truth).sum((2, 3)).float()
    return torch.where(union > 0, (answer & truth).sum((2, 3)) / union.clamp(min=1), 1.0)


def write_checkpoint(
    path: Path, *, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write everything that training needs to go on, atomically."""
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    with whole_file(path) as partial:
        torch.save(state, partial)


def read_checkpoint(
    path: Path, *, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, device: str = "cpu"
) -> tuple[int, float]:
    """Take everything back, in place; the step and the seconds. Raises FileNotFoundError when there is none."""
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["seconds"]


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move the average towards the model, in place; faster during the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def write_weights(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write weights as fp16 safetensors, atomically.

    Vectors stay fp32: they are few, and a variance of activations can be beyond the range of fp16. Raises ValueError
    for values that are not finite.
    """
    kept = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    kept = {name: t.half() if t.is_floating_point() and t.ndim > 1 else t for name, t in kept.items()}
    broken = [name for name, t in kept.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise ValueError(f"these weights are infinite or not a number and were not written: {', '.join(broken)}")
    with whole_file(path) as partial:
        save_file(kept, str(partial), metadata)


SILENCE = timedelta(minutes=10)
"""How long the processes of a training wait for each other: a guess, more than writing a checkpoint takes."""


@contextmanager
def process_group(device: str = "cpu") -> Iterator[None]:
    """The processes of ``torchrun``, for as long as the block lasts; nothing where this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=SILENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is; the first one writes and tells."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the sum over all of them, in one message."""
    if processes() == 1:
        return
    trained = [one for one in parameters if one.requires_grad]
    for one in trained:
        one.grad = torch.zeros_like(one) if one.grad is None else one.grad  # the same message everywhere
    flat = torch.cat([one.grad.flatten() for one in trained if one.grad is not None])
    dist.all_reduce(flat)
    for one, part in zip(trained, flat.split([one.numel() for one in trained]), strict=True):
        assert one.grad is not None
        one.grad.copy_(part.view_as(one))


class Trainer:
    """What is trained, with all that a checkpoint of it holds. Subclasses set the attributes."""

    model: Any
    average: Any
    """The moving average of the model's weights: what is kept."""
    optimiser: torch.optim.Optimizer
    step: int
    seconds: float
    device: str = "cpu"
    """Where a checkpoint's tensors go when training goes on."""
    batches: int = 1
    """Batches of each step, whose gradients are averaged. The processes of ``torchrun`` share them: two of them do with
    two batches what one does."""

    def take_step(
        self,
        backward: Callable[[np.random.Generator], dict[str, float]],
        *,
        seed: int,
        clip_norm: float,
        decay: float,
    ) -> dict[str, float]:
        """One step of the optimiser; the mean of each loss.

        ``backward(rng)`` draws a batch, adds the gradients of its loss, and gives its losses by name. What it draws
        follows from ``seed``, the step and the batch's number alone, whichever process it is in.
        """
        self.optimiser.zero_grad(set_to_none=True)
        mine = range(rank(), self.batches, processes())
        found = [backward(np.random.default_rng((seed, self.step, batch))) for batch in mine]
        trained = [one for one in self.model.parameters() if one.requires_grad]
        sum_gradients(trained)
        for one in trained:
            if one.grad is not None and self.batches > 1:
                one.grad /= self.batches
        nn.utils.clip_grad_norm_(trained, clip_norm)
        self.optimiser.step()
        self.step += 1
        follow(self.average, self.model, decay=decay, step=self.step)
        return mean_losses(found)

    def save(self, path: Path) -> None:
        """Write a checkpoint from which training goes on."""
        write_checkpoint(path, step=self.step, seconds=self.seconds, **self._parts)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises FileNotFoundError when there is none."""
        self.step, self.seconds = read_checkpoint(path, device=self.device, **self._parts)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimiser": self.optimiser}


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
    ``checkpoint_s`` seconds and at the end, and the learning curve (``.jsonl``) every ``log_every`` steps. Of several
    processes the first one writes, and tells the progress.
    """
    if trainer.batches % processes():
        raise ValueError(f"{processes()} processes cannot share {trainer.batches} batches evenly: set --batches")
    writes = rank() == 0
    started = last_save = time.monotonic()
    before, losses = trainer.seconds, []
    while True:
        losses.append(train_step())
        now = time.monotonic()
        trainer.seconds = before + now - started
        if writes:
            progress("train", trainer.step, steps)
        if writes and len(losses) >= log_every:
            log_losses(out, trainer.step, trainer.seconds, losses)
            losses = []
        finished = trainer.step >= steps
        if writes and (finished or now - last_save > checkpoint_s):
            trainer.save(out.with_suffix(".ckpt"))
            write_weights(out, trainer.average.state_dict(), metadata)
            last_save = now
        if finished:
            return


def log_losses(out: Path, step: int, seconds: float, losses: Sequence[dict[str, float]]) -> None:
    """Add the mean of each loss to the learning curve beside ``out``."""
    means = {name: round(value, 4) for name, value in mean_losses(losses).items()}
    line = {"step": step, "seconds": round(seconds, 1), "loss": means}
    with out.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def mean_losses(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each loss over those that have it."""
    names = sorted({name for one in losses for name in one})
    return {name: float(np.mean([one[name] for one in losses if name in one])) for name in names}
