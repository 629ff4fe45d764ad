"""Teaching the published decoder of LiteMedSAM, which knows boxes only, clicks and corrections.

The image encoder stays as it is: its embeddings come from ``embedded_slices``. Each step plays a
user on a few targets: a click, a box, both, or the mask of the slice beside it, then corrections with the previous
answer as a prompt.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from ssmsam.models.frame import mask_to_logits
from ssmsam.models.prompt_sam import BOX_MARGIN
from ssmsam.models.prompt_small import PointKind
from ssmsam.progress import Progress, silent
from ssmsam_research.training.embedded_slices import EmbeddedSlices
from ssmsam_research.training.loop import (
    OTHERS,
    Trainer,
    iou_of,
    mask_losses,
    train_steps,
)
from ssmsam_research.training.prompt_episodes import click_inside, correction, draw_box, neighbouring

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_NOTHING = -1
"""SAM's label of a point that is none."""
_LARGEST_LOGIT = 20.0
"""Answers are cut to this before they are fed back, as a prompt far beyond it would drown the others. A guess."""


@dataclass(frozen=True)
class LiteTrainingConfig:
    """How long and how fast. ``steps`` counts over all resumed runs. The other numbers are guesses."""

    steps: int = 1500
    learning_rate: float = 2e-4
    warm_up_steps: int = 30
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average: float = 0.995
    batch: int = 4
    batches: int = 1
    """Of that size in each step."""
    rounds: tuple[int, int] = (2, 4)
    """The fewest and the most answers that a step asks for, the corrected ones among them."""
    box_share: float = 0.25
    """Share of steps that begin with a box; a third of them with a click in it."""
    neighbour_share: float = 0.15
    """Share of steps that begin with the mask of a neighbouring slice, as propagation does."""
    part_share: float = 0.15
    """Share of targets that are one part of a label and not all of it."""
    bfloat16: bool = False
    """Whether to compute in half the precision: 1.6 times as fast where the processor can, slower elsewhere."""
    checkpoint_s: float = 120.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """``image`` (B, c, h, w) float32 and ``truth`` (B, S, S) bool."""

    image: torch.Tensor
    truth: np.ndarray


class Targets:
    """Draws targets: a set as often as the square root of the number of its labels says, every label of a slice alike.

    So a set of thirteen organs counts for more than one of lesions, and does not drown it.
    """

    def __init__(self, slices: Sequence[EmbeddedSlices], *, part_share: float) -> None:
        self.part_share = part_share
        self.by_set: dict[str, list[tuple[EmbeddedSlices, int]]] = {}
        for case in slices:
            places = [(case, index) for index in range(len(case.label)) if case.label[index].any()]
            self.by_set.setdefault(case.dataset, []).extend(places)
        self.by_set = {name: places for name, places in sorted(self.by_set.items()) if places}
        if not self.by_set:
            raise ValueError("no slice holds a label: there is nothing to learn from")
        weights = np.sqrt([_label_count(places) for places in self.by_set.values()])
        self.chances = weights / weights.sum()

    def draw(self, count: int, rng: np.random.Generator) -> TargetBatch:
        """A batch of targets, perhaps several of one slice."""
        names = list(self.by_set)
        images, truths = [], []
        for _ in range(count):
            places = self.by_set[names[rng.choice(len(names), p=self.chances)]]
            case, index = places[rng.integers(len(places))]
            values = np.unique(case.label[index])
            truth = case.label[index] == rng.choice(values[values > 0])
            images.append(torch.from_numpy(np.array(case.image[index])).float())
            truths.append(_one_part(truth, rng) if rng.random() < self.part_share else truth)
        return TargetBatch(torch.stack(images), np.stack(truths))


class LiteDecoder(nn.Module):
    """SAM's prompt encoder and mask decoder, for a batch of different images with the same kinds of prompts."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = copy.deepcopy(sam.prompt_encoder)
        self.mask_decoder = copy.deepcopy(sam.mask_decoder).requires_grad_(True)
        for part in (self.prompt_encoder.point_embeddings, self.prompt_encoder.mask_downscaling):
            part.requires_grad_(True)
        self.prompt_encoder.not_a_point_embed.requires_grad_(True)
        self.prompt_encoder.no_mask_embed.requires_grad_(True)

    def forward(
        self,
        image: torch.Tensor,
        *,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, 4, S, S) and predicted IoU (B, 4): the answer to clear prompts, then three to a single click."""
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
        decoder = self.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        queries = torch.cat([own.expand(len(image), -1, -1), sparse], dim=1)
        place = self.prompt_encoder.get_dense_pe().expand(len(image), -1, -1, -1)
        queries, cells = decoder.transformer(image + dense, place, queries)
        fine = decoder.output_upscaling(cells.transpose(1, 2).unflatten(2, image.shape[-2:]))
        heads = enumerate(decoder.output_hypernetworks_mlps)
        weights = torch.stack([head(queries[:, 1 + number]) for number, head in heads], dim=1)
        return torch.einsum("bkc,bchw->bkhw", weights, fine), decoder.iou_prediction_head(queries[:, 0])


class LiteTrainer(Trainer):
    """Everything that a checkpoint holds."""

    model: LiteDecoder
    average: LiteDecoder

    def __init__(self, sam: Sam, config: LiteTrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.model = LiteDecoder(sam)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.step, self.seconds, self.batches = 0, 0.0, config.batches

    def rate(self) -> float:
        """Learning rate now: linear warm-up, then cosine over all steps."""
        done = min(1.0, self.step / self.config.steps)
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2
        return self.config.learning_rate * min(1.0, (self.step + 1) / self.config.warm_up_steps) * cosine

    def train_step(self, targets: Targets) -> dict[str, float]:
        """One step of the optimiser on ``config.batches`` batches; the mean of its losses by round."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        return self.take_step(
            lambda rng: self._play(targets.draw(self.config.batch, rng), rng),
            seed=self.config.seed,
            clip_norm=self.config.clip_norm,
            decay=self.config.average,
        )

    def _play(self, batch: TargetBatch, rng: np.random.Generator) -> dict[str, float]:
        """All rounds, each with its own backward pass, so that only one is in memory."""
        opening = _opening(batch.truth, self.config, rng)
        boxes, clicks, previous = opening.boxes, opening.clicks, opening.masks
        truth = torch.from_numpy(batch.truth).float()[:, None]
        rounds = int(rng.integers(self.config.rounds[0], self.config.rounds[1] + 1))
        found = {}
        for turn in range(rounds):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
                logits, quality = self.model(batch.image, points=_points(clicks), boxes=boxes, masks=previous)
            logits, quality = logits.float(), quality.float()
            ambiguous = turn == 0 and opening.kind == "click"
            logits, quality = (logits[:, 1:], quality[:, 1:]) if ambiguous else (logits[:, :1], quality[:, :1])
            loss = _loss(logits, quality, truth)
            (loss / rounds).backward()
            found[f"{opening.kind} {turn + 1}"] = float(loss.detach())
            best = quality.argmax(1)
            answer = logits.detach()[torch.arange(len(best)), best]
            previous = answer[:, None].clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
            for one, target, guess in zip(clicks, batch.truth, answer.numpy() > 0, strict=True):
                one.append(_correction(target, guess, rng))
        return found


def train_lite(
    slices: Sequence[EmbeddedSlices],
    sam: Sam,
    *,
    out: Path,
    config: LiteTrainingConfig,
    encoder_sha256: str,
    resume: Path | None = None,
    progress: Progress = silent,
) -> LiteTrainer:
    """Train for ``config.steps`` and write the averaged decoder to ``out`` (fp16 safetensors).

    Beside it appear a checkpoint (``.ckpt``) and a learning curve (``.jsonl``), as of the small model's training.
    """
    trainer = LiteTrainer(sam, config)
    if resume is not None:
        trainer.resume(resume)
    targets = Targets(slices, part_share=config.part_share)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".config.json").write_text(json.dumps(asdict(config), indent=1))
    train_steps(
        trainer,
        lambda: trainer.train_step(targets),
        steps=config.steps,
        out=out,
        log_every=25,
        checkpoint_s=config.checkpoint_s,
        metadata={"encoder_sha256": encoder_sha256},
        progress=progress,
    )
    return trainer


@dataclass(frozen=True, eq=False)
class _Opening:
    """What the first answer of a step is asked with."""

    kind: str
    clicks: list[list[tuple[np.ndarray, int]]]
    boxes: torch.Tensor | None = None
    masks: torch.Tensor | None = None


def _opening(truths: np.ndarray, config: LiteTrainingConfig, rng: np.random.Generator) -> _Opening:
    way = rng.random()
    if way < config.neighbour_share:
        beside = np.stack([neighbouring(truth, rng) for truth in truths])
        masks = mask_to_logits(torch.from_numpy(beside).float()[:, None])
        return _Opening("neighbour", [[] for _ in truths], _carried(beside), masks)
    clicked = [[_first_click(truth, rng)] for truth in truths]
    if way >= config.neighbour_share + config.box_share:
        return _Opening("click", clicked)
    boxes = torch.stack([_box(truth, rng) for truth in truths])
    return _Opening("box", clicked if rng.random() < 1 / 3 else [[] for _ in truths], boxes)


def _carried(masks: np.ndarray) -> torch.Tensor:
    """The boxes (B, 4) that propagation gives with masks, as :mod:`ssmsam.models.prompt_sam` does."""
    found = []
    for mask in masks:
        y, x = np.nonzero(mask)
        found.append([x.min(), y.min(), x.max(), y.max()])
    return torch.tensor(found).float() + BOX_MARGIN * torch.tensor([-1.0, -1.0, 1.0, 1.0])


def _label_count(places: list[tuple[EmbeddedSlices, int]]) -> int:
    return len({int(value) for case, index in places for value in np.unique(case.label[index])} - {0})


def _loss(logits: torch.Tensor, quality: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The best of the answers (B, K, S, S) fits; each knows how well it does."""
    masks = mask_losses(logits, truth, torch.ones(len(truth)))
    best = masks.min(dim=1).values + OTHERS * masks.mean(dim=1)
    return best.mean() + 0.5 * F.mse_loss(quality, iou_of(logits.detach(), truth))


def _one_part(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts, count = ndimage.label(truth)
    return parts == rng.integers(1, count + 1)


def _first_click(truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    position = click_inside(truth, rng)
    assert position is not None  # targets are never empty
    return position, 1


def _correction(truth: np.ndarray, answer: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    found = correction(truth, answer, rng)
    return (np.zeros(2), _NOTHING) if found is None else (found[0], int(found[1] == PointKind.POSITIVE))


def _points(clicks: list[list[tuple[np.ndarray, int]]]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Points (B, P, 2) and labels (B, P): SAM draws them in no order."""
    if not clicks[0]:
        return None
    xy = np.array([[position for position, _ in one] for one in clicks])
    return torch.from_numpy(xy).float(), torch.tensor([[label for _, label in one] for one in clicks])


def _box(truth: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(draw_box(truth, rng)).float().reshape(4)
