"""What a few-shot model expects of the slices of a volume, from embeddings that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssmsam.active.extent import presence_given
from ssmsam.active.volume_state import Forecast
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings, slice_descriptors
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import DEFAULTS, FewShotConfig
from ssmsam.fewshot.pipeline import Finding, adapt, find
from ssmsam.fewshot.proposals import Proposals
from ssmsam.fewshot.selection import Selected, cell_probabilities
from ssmsam.fewshot.support import Support
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.progress import Progress, silent


def prompted(support: Support, embedder: Embedder, decoder: TargetDecoder) -> AdaptedTask:
    """A task of all labelled slices with the decoder as it is: no adaptation, no other views of them,
    no pseudo-labels, and no refinement in enlarged windows.

    The encoder runs only for labelled slices without an embedding. Raises NothingToLearn.
    """
    views = replace(DEFAULTS.adaptation.views, views=0)
    adaptation = replace(DEFAULTS.adaptation, steps=0, views=views)
    segmentation = replace(DEFAULTS.segmentation, roi=None)
    config = replace(DEFAULTS, adaptation=adaptation, segmentation=segmentation, folds=0)
    return adapt(support, embedder, decoder, pseudo_labels=False, config=config)


@dataclass(frozen=True, eq=False)
class Expected:
    """Of one label: the proposals as they would be served, and what is expected of them."""

    selected: Selected
    forecast: Forecast


def expect(
    task: AdaptedTask,
    query: VolumeEmbeddings,
    slices: Sequence[int],
    *,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> dict[str, Expected]:
    """Label -> what a task proposes and expects on some slices of a volume, which should be embedded.

    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two batches.
    """
    expected = {}
    for label, found in find(task, query, slices, config=config.segmentation, progress=progress).items():
        likely = calibrated(found, task.banks[label], query)
        expected[label] = Expected(found.selected, _foreseen(likely, found.selected, query))
    return expected


def descriptors(query: VolumeEmbeddings, slices: Sequence[int]) -> dict[int, np.ndarray]:
    """How some slices look: slice -> unit vector (D,) float32."""
    with torch.inference_mode():
        return {index: slice_descriptors(query.slice(index)["image"])[0].cpu().numpy() for index in slices}


def calibrated(found: Finding, bank: SupportBank, query: VolumeEmbeddings) -> Proposals:
    """What was proposed, with the presence that the volume head sees, given what is annotated."""
    proposals, presence, shows = found.proposed, found.final.presence, bank.shows
    known = {
        index: bool(shows[number])
        for index, number in bank.annotated_slices(query).items()
        # a slice that is known in parts says nothing of the label's absence
        if shows[number] or (bank.distances[number] != 0).all()
    }
    return replace(proposals, presence=presence_given(presence, proposals.slices, known, query.slice_mm))


def _foreseen(proposals: Proposals, selected: Selected, query: VolumeEmbeddings) -> Forecast:
    """Areas by the probabilities of cells, inside the final mask and outside."""
    cell_mm2 = (query.frame.input_mm * query.frame.size / proposals.logits.shape[-1]) ** 2
    cells = cell_probabilities(proposals.logits)
    mask = selected.proposals.logits > 0
    area, inside, outside = (cell_mm2 * one.sum(axis=(1, 2)) for one in (mask, cells * mask, cells * ~mask))
    return Forecast(proposals.slices, proposals.presence, area, inside, outside, selected.expected)
