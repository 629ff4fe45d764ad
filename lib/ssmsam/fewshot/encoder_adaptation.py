"""The full online optimiser: adaptors inside the encoder and the decoder learn together from the labelled slices.

As published (Zhang et al., WACV 2024): every step encodes the support anew. That is what makes it slow, and why the
mode on cached embeddings, :func:`ssmsam.fewshot.pipeline.adapt`, is the default.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import AdaptationConfig, proposal_loss, query_slices, rate
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.episodes import AdaptationTask, adaptation_tasks, random_move, with_truth
from ssmsam.fewshot.pipeline import made_head
from ssmsam.fewshot.support import LabelledSlice, Support, checked
from ssmsam.fewshot.support_bank import Places, SupportBank, drawn_known, drawn_unknown
from ssmsam.models.adapters import AdaptedEncoder, adapted_encoder
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.prompt_decoder import draw_mask
from ssmsam.progress import Progress, silent

DEFAULTS = AdaptationConfig(budget_s=60.0)


@dataclass(frozen=True, eq=False)
class Online:
    """The encoder with its adaptors, an embedder around it, and the head for the embeddings that it makes."""

    encoder: AdaptedEncoder
    embedder: Embedder
    head: AdaptedTask
    losses: tuple[float, ...]


def adapt_online(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    config: AdaptationConfig = DEFAULTS,
    progress: Progress = silent,
) -> Online:
    """Adapt encoder and decoder to the labelled slices; both stay as they are, copies and adaptors change.

    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("adapt", done, total)`` stops between two steps. Raises
    :class:`~ssmsam.fewshot.support.NothingToLearn`, and TypeError for an encoder without a place for adaptors. Always
    by AdamW, whatever ``config.optimiser`` says, and every step sees a new view.
    """
    support = checked(support)
    encoder = adapted_encoder(embedder.encoder).to(embedder.device)
    fitted = copy.deepcopy(decoder).train().requires_grad_(False)
    learned = [p.requires_grad_(True) for p in (*encoder.parameters(), *fitted.adaptable())]
    optimiser = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay)
    rng = np.random.default_rng(config.seed)
    losses: list[float] = []
    started = time.perf_counter()
    for step in range(config.steps):
        progress("adapt", step, config.steps)
        if time.perf_counter() - started > config.budget_s:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate(step, config)
        label = list(support)[step % len(support)]
        losses.append(_step(support[label], encoder, fitted, optimiser, rng, config))
    progress("adapt", config.steps, config.steps)
    encoder.eval().requires_grad_(False)
    fitted.eval().requires_grad_(False)
    anew = Embedder(encoder=encoder, store=embedder.store, bfloat16=embedder.bfloat16)
    head = _head(support, anew, fitted, config, steps=len(losses), seconds=time.perf_counter() - started)
    return Online(encoder, anew, head, tuple(losses))


def _step(
    slices: Sequence[LabelledSlice],
    encoder: AdaptedEncoder,
    decoder: TargetDecoder,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    config: AdaptationConfig,
) -> float:
    """One step on one label: its slices in a new look, some of them as queries that are shown the others."""
    adaptation_task = _adaptation_task(slices, encoder, decoder, rng, config)
    waiting = query_slices(adaptation_task.bank)
    numbers = sorted(int(n) for n in rng.permutation(waiting)[: config.batch])
    query_batch = adaptation_task.query_batch(numbers)
    shares = rng.uniform(0, config.prior_truth, len(numbers)).tolist()
    query_batch = with_truth(query_batch, adaptation_task.bank, numbers, shares)
    proposal = decoder(query_batch.embedding, query_batch.shown, reading=query_batch.reading)
    loss = proposal_loss(proposal, query_batch.masks, query_batch.known, judge_presence=query_batch.judged)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], config.clip_norm)
    optimiser.step()
    return float(loss.detach())


def _adaptation_task(
    slices: Sequence[LabelledSlice],
    encoder: AdaptedEncoder,
    decoder: TargetDecoder,
    rng: np.random.Generator,
    config: AdaptationConfig,
) -> AdaptationTask:
    """All slices of a label, encoded now, with a gradient to the adaptors."""
    side, device = decoder.logits_side, next(encoder.parameters()).device
    moved, gamma = random_move(rng, config.views)
    inputs = torch.cat([one.embeddings.inputs([one.index]) for one in slices]).to(device)
    embedding = encoder.encode(moved(inputs).clamp(0, 1) ** gamma)
    masks = torch.cat([draw_mask(one.drawn, one.embeddings.frame, side, device) for one in slices])
    known = torch.cat([drawn_known(one, side).to(device) for one in slices])
    unknown = torch.cat([drawn_unknown(one, side).to(device) for one in slices])
    masks, known = moved(masks), moved(known)
    bank = SupportBank.from_tensors(
        embedding["image"].detach(),
        masks,
        known,
        unknown=moved(unknown),
        stride=decoder.stride,
        places=Places.of(slices, side=side),
    )
    return AdaptationTask(bank, embedding, masks, known, decoder, config.bank)


def _head(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    config: AdaptationConfig,
    *,
    steps: int,
    seconds: float,
) -> AdaptedTask:
    """The labelled slices as the adapted encoder sees them, with the fitted decoder."""
    seen = {label: [reopened(one, embedder) for one in slices] for label, slices in support.items()}
    as_they_are = replace(config.views, views=0)
    tasks = adaptation_tasks(seen, embedder, decoder, config=as_they_are, bank=config.bank, seed=config.seed)
    return made_head(
        decoder, tasks, support, embedder, config, adapted=True, steps=steps, seconds=seconds, estimates={}
    )


def reopened(one: LabelledSlice, embedder: Embedder) -> LabelledSlice:
    """The same labelled slice, with the embeddings that another embedder makes of its volume."""
    opened = embedder.open(one.embeddings.volume, recipe=one.embeddings.recipe, plane=one.embeddings.plane)
    return replace(one, embeddings=opened)
