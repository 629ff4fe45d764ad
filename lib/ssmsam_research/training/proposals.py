"""What the few-shot decoder proposes for a batch of groups, and how good that is."""

from __future__ import annotations

import numpy as np
import torch

from ssmsam.fewshot.adaptation import proposal_loss
from ssmsam.fewshot.support_bank import gathered_context
from ssmsam.models.encoder import Embedding, take
from ssmsam.models.fewshot_decoder import Corrections, Proposal, TargetDecoder
from ssmsam.models.support_encoding import describe
from ssmsam_research.training.groups import GroupBatch
from ssmsam_research.training.prompt_episodes import SparsePrompts, correction

CORRECTED_SHARE = 0.25
"""Share of batches in which the proposals are corrected by a click and made again."""
CLICKS = 2


def group_losses(
    network: TargetDecoder, embedding: Embedding, batch: GroupBatch, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """The losses of the proposals, by name: "proposal", and "corrected" where clicks mended them."""
    described = take(embedding, batch.described)
    description = describe(described["image"], batch.masks, torch.ones_like(batch.masks), network.stride)
    context = gathered_context(description, batch.supports, batch.near, batch.prior, batch.trust)
    query = take(embedding, batch.described[batch.asked])
    target = batch.masks[batch.asked]
    proposal = network(query, context)
    losses = {"proposal": proposal_loss(proposal, target)}
    if rng.random() < CORRECTED_SHARE:
        corrections = corrected(proposal, target, rng)
        losses["corrected"] = proposal_loss(network(query, context, corrections), target, judge_presence=False)
    return losses


def corrected(proposal: Proposal, target: torch.Tensor, rng: np.random.Generator) -> Corrections:
    """A click on the largest error of each proposal; ``target`` (N, 1, S, S)."""
    truth = target[:, 0].cpu().numpy() > 0.5
    answer = proposal.logits.detach().cpu().numpy() > 0
    sparse = SparsePrompts(len(truth), CLICKS)
    for index in range(len(truth)):
        click = correction(truth[index], answer[index], rng)
        if click is not None:
            sparse.add(index, *click)
    device = target.device
    return Corrections(sparse.points.to(device), sparse.kinds.to(device), proposal.logits.detach()[:, None])
