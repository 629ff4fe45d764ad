"""What a good answer is: one candidate that fits, and an honest judgement of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ssmsam.models.prompt_small import Answer

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
