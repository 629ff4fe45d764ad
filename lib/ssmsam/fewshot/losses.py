"""How good a proposal is."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ssmsam.fewshot.decoder import Proposal


def proposal_loss(
    proposal: Proposal, target: torch.Tensor, weight: torch.Tensor | None = None, *, judge_presence: bool = True
) -> torch.Tensor:
    """Dice where the target is present and cross-entropy everywhere, and the presence's cross-entropy.

    ``target`` (N, 1, S, S) in [0, 1]; ``weight`` the same shape: 0 where nothing is known.
    """
    truth = target[:, 0]
    known = torch.ones_like(truth) if weight is None else weight[:, 0]
    present = (truth.amax((1, 2)) > 0.5).float()
    probability = proposal.logits.sigmoid() * known
    overlap = 2 * (probability * truth).sum((1, 2)) + 1
    dice = 1 - overlap / (probability.sum((1, 2)) + (truth * known).sum((1, 2)) + 1)
    entropy = F.binary_cross_entropy_with_logits(proposal.logits, truth, reduction="none")
    entropy = (entropy * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
    total = dice * present + 4 * entropy
    if judge_presence:
        total = total + 0.5 * F.binary_cross_entropy_with_logits(proposal.presence, present, reduction="none")
    return total.mean()
