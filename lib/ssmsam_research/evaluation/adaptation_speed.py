"""Protocol "speed", few-shot part: adapting to five slices, and what it saves that the encoder stays out of it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.placement import with_ends
from ssmsam_research.evaluation.prompted import ModelChoice, PromptedModel
from ssmsam_research.evaluation.speed import SpeedProtocol, peak_memory_mb

SLICES = 5
_TARGET = "target"


def measure_adaptation(
    choice: ModelChoice, volume: Volume, truth: np.ndarray, protocol: SpeedProtocol, *, steps: int = 4
) -> dict[str, Any]:
    """Times of one model on the largest label of ``truth`` (slices, rows, columns), shown on five slices.

    ``epoch_cached`` is a pass over the five slices in training with cached embeddings, ``epoch_encoding`` the same
    with every slice encoded again, forward only, as a frozen encoder in the loop would do; ``ratio`` the second over
    the first. ``adapt`` is everything from labelled slices with cached embeddings to a head, with its estimate, and
    ``segment_slice`` a slice of the volume with cached embeddings; both only for encoders that take less than a second
    a slice.
    """
    torch.set_num_threads(protocol.threads)
    model = PromptedModel.load(choice)
    embeddings = model.embedder.open(volume)
    values, counts = np.unique(truth[truth > 0], return_counts=True)
    mask = truth == values[counts.argmax()]
    support = {_TARGET: [LabelledSlice(embeddings, index, mask[index]) for index in with_ends(mask, SLICES)]}
    started = time.perf_counter()
    embeddings.embed([one.index for one in support[_TARGET]])
    encode = (time.perf_counter() - started) / SLICES
    config = FewShotConfig()
    plain = replace(
        config.adaptation, steps=steps, budget_s=float("inf"), views=replace(config.adaptation.views, views=0)
    )
    tasks = adaptation_tasks(support, model.embedder, model.target, config=plain)
    fit(model.target, tasks, replace(plain, steps=1))
    cached = fit(model.target, tasks, plain).seconds / (steps * plain.batch) * SLICES
    found: dict[str, Any] = {
        "epoch_cached": round(cached, 4),
        "epoch_encoding": round(cached + SLICES * encode, 4),
        "ratio": round((cached + SLICES * encode) / cached, 1),
    }
    if encode < 1:
        started = time.perf_counter()
        head = adapt(support, model.embedder, model.target, pseudo_labels=False, config=config)
        found["adapt"] = round(time.perf_counter() - started, 2)
        found["adaptation_steps"] = head.card["steps"]
        embeddings.embed()
        started = time.perf_counter()
        segment(embeddings, head, config=config)
        found["segment_slice"] = round((time.perf_counter() - started) / embeddings.count, 4)
    return {**found, "peak_memory_mb": round(peak_memory_mb())}
