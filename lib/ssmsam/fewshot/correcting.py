"""Clicks on top of target tokens: a proposal that a person mends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.fewshot.bank import Bank, BankConfig, look
from ssmsam.fewshot.decoder import Corrections, TargetDecoder
from ssmsam.fewshot.proposals import Proposals
from ssmsam.prompting.prompt import SlicePrompt
from ssmsam.prompting.small_decoder import point_tensors

Clicks = Mapping[int, SlicePrompt]
"""Slice -> what was clicked on it."""


@torch.inference_mode()
def corrected(
    proposals: Proposals,
    clicks: Clicks,
    decoder: TargetDecoder,
    bank: Bank,
    query: VolumeEmbeddings,
    config: BankConfig,
) -> Proposals:
    """The same with the clicked slices proposed again. The target is there wherever something was clicked positively,
    and a slice that was only clicked negatively keeps its presence. Slices that are not among the proposals are left
    out."""
    logits, presence = proposals.logits.copy(), proposals.presence.copy()
    for row, index in enumerate(proposals.slices):
        prompt = clicks.get(int(index))
        if prompt is None:
            continue
        embedding = decoder.view(query.slice(int(index)))
        device = embedding["image"].device
        shown = bank.shown_to(query, [int(index)], look(embedding["image"]), config=config)
        points, kinds = point_tensors(prompt, query.frame)
        previous = torch.from_numpy(logits[row])[None, None].to(device)
        corrections = Corrections(points[None].to(device), kinds[None].to(device), previous)
        logits[row] = decoder(embedding, shown, corrections).logits[0].cpu().numpy()
        if not prompt.empty:
            presence[row] = 1.0
    return replace(proposals, logits=logits, presence=presence)
