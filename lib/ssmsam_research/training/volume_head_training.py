"""Teaching the volume head on what decoders propose for training patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.fewshot.config import EVEN, OBJECTS
from ssmsam.models.volume_head import OBJECT_DESCRIPTORS, SLICE_DESCRIPTORS, Judgement, VolumeHead, summary
from ssmsam.progress import Progress, silent
from ssmsam_research.training.volume_head_examples import Example


@dataclass(frozen=True)
class VolumeHeadConfig:
    """How long and how fast; all guesses. An epoch sees every example once."""

    epochs: int = 15
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.05
    """Standard deviation of what is added to descriptors."""
    seed: int = 0


def train_volume_head(
    several: Sequence[Example], config: VolumeHeadConfig = VolumeHeadConfig(), *, progress: Progress = silent
) -> VolumeHead:
    """The same examples and seed give the same head. Raises ValueError without examples."""
    if not several:
        raise ValueError("no examples: make them with `ssmsam train volume-head`")
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    head = VolumeHead(SLICE_DESCRIPTORS, OBJECT_DESCRIPTORS)
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(several) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps)
    for epoch in range(config.epochs):
        progress("train", epoch, config.epochs)
        order = rng.permutation(len(several))
        for start in range(0, len(order), config.batch):
            batch = padded([several[n] for n in order[start : start + config.batch]])
            loss = loss_of(head, batch, noise=config.noise)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    progress("train", config.epochs, config.epochs)
    head.eval()
    return learn_estimate(head, Summaries.of(head, several))


PENALTY = 100.0
"""Of squared weights in the regression that says what Dice to expect: of 10, 30, 100 and 300 the one with the least
error on training sets left out in turn."""
_ROUNDS = 25
"""Of Newton's method, which has converged long before."""


@dataclass(frozen=True, eq=False)
class Summaries:
    """Of N examples: ``numbers`` (N, E + 2 D + H) as in :func:`~ssmsam.models.volume_head.summary` of the object that
    the head takes for the target, the ``dice`` (N,) of what it keeps of that, and how much each counts."""

    numbers: torch.Tensor
    dice: torch.Tensor
    weight: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, head: VolumeHead, several: Sequence[Example]) -> Summaries:
        """None, one, two or three, and more annotated slices count alike; so do, among these, volumes."""
        numbers, dice, groups = [], [], []
        for one in several:
            batch = padded([one])
            found = judged(head, batch)
            exists = batch.shown[0].amax(1) > 0
            best = int(found.target[0].masked_fill(~exists, -torch.inf).argmax())
            keep, _, hidden = head.read(batch.slices[0], batch.objects[0], batch.shown[0])
            kept = keep.sigmoid() * batch.shown[0]
            numbers.append(summary(batch.slices[0], batch.objects[0], kept, hidden)[best])
            dice.append(overall_dice((found.keep > 0).float(), batch)[0, best])
            shown = round(float(np.expm1(one.objects[0, 0])))
            groups.append((min(shown, 2) + (shown > 3), one.name.split("/")[-2]))
        volumes = [sum(other == group for other in groups) for group in groups]
        counts = [len({other[1] for other in groups if other[0] == group[0]}) for group in groups]
        weight = torch.tensor([1 / (v * c) for v, c in zip(volumes, counts, strict=True)])
        return cls(torch.stack(numbers), torch.stack(dice), weight / weight.mean())


@torch.no_grad()
def learn_estimate(head: VolumeHead, known: Summaries, *, penalty: float = PENALTY) -> VolumeHead:
    """Teach a head what Dice to expect, by logistic regression; what it keeps stays as it is."""
    head.centre.copy_(known.numbers.mean(0))
    head.spread.copy_(known.numbers.std(0).clamp(min=0.05))
    one = torch.ones(len(known.dice), 1, dtype=torch.double)
    cells = torch.cat([head.usual(known.numbers).double(), one], dim=1)
    weights = cells.new_zeros(cells.shape[1])
    penalties = torch.full_like(weights, penalty)
    penalties[-1] = 1e-6  # the offset is free
    for _ in range(_ROUNDS):
        found = (cells @ weights).sigmoid()
        slope = cells.T @ (known.weight * (known.dice - found)) - penalties * weights
        curve = (cells * (known.weight * (found * (1 - found)).clamp(min=0.02))[:, None]).T @ cells
        weights += torch.linalg.solve(curve + penalties.diag(), slope)
    head.estimate.weight.copy_(weights[None, :-1])
    head.estimate.bias.copy_(weights[-1:])
    return head


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples of K objects on n slices each; what is padded has no mask. Fields as in :class:`Example`."""

    slices: torch.Tensor
    objects: torch.Tensor
    shown: torch.Tensor
    area: torch.Tensor
    inside: torch.Tensor
    truth: torch.Tensor
    known: torch.Tensor


def padded(several: Sequence[Example]) -> Batch:
    """Examples of different lengths as one batch."""
    longest = max(len(one.truth) for one in several)

    def filled(values: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        found = torch.zeros(shape)
        found[tuple(slice(0, n) for n in values.shape)] = torch.from_numpy(values.astype(np.float32))
        return found

    shapes = {
        "slices": (OBJECTS, longest, SLICE_DESCRIPTORS), "objects": (OBJECTS, OBJECT_DESCRIPTORS),
        "shown": (OBJECTS, longest), "area": (OBJECTS, longest), "inside": (OBJECTS, longest),
        "truth": (longest,), "known": (longest,),
    }  # fmt: skip
    return Batch(
        **{name: torch.stack([filled(getattr(one, name), shape) for one in several]) for name, shape in shapes.items()}
    )


def judged(head: VolumeHead, batch: Batch, *, noise: float = 0.0) -> Judgement:
    """The head's answers (B, K, ...)."""
    shape = batch.shown.shape[:2]
    slices = batch.slices + noise * torch.randn_like(batch.slices) if noise else batch.slices
    found = head(slices.flatten(0, 1), batch.objects.flatten(0, 1), batch.shown.flatten(0, 1))
    return Judgement(**{name: value.unflatten(0, shape) for name, value in vars(found).items()})


def loss_of(head: VolumeHead, batch: Batch, *, noise: float = 0.0) -> torch.Tensor:
    """Each mask by its share of the object, what is kept by its Dice over the slices that nobody annotated, the Dice of
    each mask and of the whole, and which object is the target."""
    found = judged(head, batch, noise=noise)
    asked = batch.shown * (1 - batch.known[:, None])
    right = worth_keeping(batch)
    weight = asked * (0.2 + batch.area / batch.area.amax(2, keepdim=True).clamp(min=1))
    keep = F.binary_cross_entropy_with_logits(found.keep, right, weight, reduction="sum") / weight.sum().clamp(min=1)
    both = 2 * batch.inside / (batch.area + batch.truth[:, None]).clamp(min=1)
    dice = F.binary_cross_entropy_with_logits(found.dice, both, asked, reduction="sum") / asked.sum().clamp(min=1)
    exists = batch.shown.amax(2)
    best = (right * batch.area * batch.shown).sum(2) / (batch.area * batch.shown).sum(2).clamp(min=1)
    target = F.binary_cross_entropy_with_logits(found.target, (best > 0.5).float(), exists, reduction="mean")
    soft = overall_dice(found.keep.sigmoid(), batch)
    main = exists * (batch.inside.sum(2) == batch.inside.sum(2).amax(1, keepdim=True)) * (batch.inside.sum(2) > 0)
    kept = ((1 - soft) * main).sum() / main.sum().clamp(min=1)
    hard = overall_dice((found.keep > 0).float(), batch).detach()
    overall = F.binary_cross_entropy_with_logits(found.overall, hard, exists, reduction="mean")
    return keep + 0.5 * dice + target + kept + overall


def worth_keeping(batch: Batch) -> torch.Tensor:
    """(B, K, n) in {0, 1}: masks that raise the Dice of the whole. Of a set with Dice D every mask does that of which
    more than D / 2 is the target, so that of a target that is hard to draw even poor masks are kept. D is what the best
    object reaches."""
    half = (batch.inside > 0.5 * batch.area).float()
    reached = torch.maximum(overall_dice(half, batch), overall_dice(torch.ones_like(half), batch))
    best = (reached * batch.shown.amax(2)).amax(1)[:, None, None]
    return (batch.inside > 0.5 * best * batch.area).float() * batch.shown


def overall_dice(keep: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, K): the Dice over the slices that nobody annotated when ``keep`` (B, K, n) of each object is taken."""
    asked = batch.shown * (1 - batch.known[:, None])
    truth = (batch.truth * (1 - batch.known)).sum(1)[:, None]
    area = (keep * asked * batch.area).sum(2) + truth
    return torch.where(area > 0, 2 * (keep * asked * batch.inside).sum(2) / area.clamp(min=1), 1.0)


def chosen_dice(head: VolumeHead, several: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """The Dice (N,) of what the head keeps of each example, and the Dice that it expects of that."""
    batch = padded(several)
    with torch.inference_mode():
        found = judged(head, batch)
    exists = batch.shown.amax(2) > 0
    best = found.target.masked_fill(~exists, -torch.inf).argmax(1)
    rows = torch.arange(len(best))
    keep = (found.keep.sigmoid() > EVEN).float()
    return overall_dice(keep, batch)[rows, best].numpy(), found.expected.sigmoid()[rows, best].numpy()
