"""What a few-shot model expects of the slices of a volume, and how unsure it is of every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssmsam.active.expected_gain import presence_given
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
from ssmsam.models.frame import logits_to_pixels
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


MOST_VIEWS = 8
"""A *guess*, which bounds the time: every view answers the whole volume again."""


def uncertainty_map(
    task: AdaptedTask,
    query: VolumeEmbeddings,
    *,
    labels: Sequence[str] = (),
    support: Support | None = None,
    views: int = 0,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> np.ndarray:
    """How unsure a model is of every voxel; embeds the slices that are not.

    A decoder's own probabilities say how sure it is given its whole support. What it would have said without some of
    the annotated slices says how much hangs on these: the model answers again without each part of them, and the
    entropy is that of the mean answer (a deep ensemble's predictive entropy; here the members differ in their support,
    as in a jackknife, which costs no encoder pass and no training).

    Args:
        task: What answers.
        query: The volume.
        labels: By default all of the task; of several the least sure counts.
        support: Pixels that it knows of this volume are sure.
        views: As in :func:`probabilities`.
        config: Settings of all steps.
        progress: Raising :class:`~ssmsam.progress.Cancelled` in it stops.

    Returns:
        (slices, rows, columns) uint8 on the volume's grid, entropy in per cent of one bit: 0 is sure, 100 a coin toss.
    """
    unsure = np.zeros(query.grid.shape, dtype=np.uint8)
    stack = query.plane.stack(unsure)
    for label, cells in probabilities(
        task, query, labels=labels, views=views, config=config, progress=progress
    ).items():
        known = {one.index: one for one in (support or {}).get(label, ()) if one.volume == query.key.digest}
        for index, drawn in enumerate(cells):
            pixels = logits_to_pixels(torch.from_numpy(drawn).float()[None], query.frame)[0]
            entropy = 100 * _bits(np.clip(pixels, 0, 1))
            if index in known:
                annotation = known[index]
                entropy[np.ones_like(annotation.mask) if annotation.known is None else annotation.known] = 0
            stack[index] = np.maximum(stack[index], np.rint(entropy).astype(np.uint8))
    return unsure


def probabilities(
    task: AdaptedTask,
    query: VolumeEmbeddings,
    *,
    labels: Sequence[str] = (),
    views: int = 0,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> dict[str, np.ndarray]:
    """Label -> probability (slices, S, S) float32 that the target is in each cell of the encoder's frame.

    With ``views``, the mean of what the task says and of what it would say without each of so many parts of the
    annotated slices; labels with fewer slices have fewer views. Embeds the slices that are not. Raises ValueError for
    more views than MOST_VIEWS, and less than none.
    """
    if not 0 <= views <= MOST_VIEWS:
        raise ValueError(f"views must be from 0 to {MOST_VIEWS}, got {views}")
    query.embed(progress=progress)
    wanted = list(labels or task.labels)
    found: dict[str, list[np.ndarray]] = {label: [] for label in wanted}
    for one, able in _tasks(task, wanted, views):
        for label, finding in find(
            one, query, range(query.count), labels=able, config=config.segmentation, progress=progress
        ).items():
            found[label].append(probability(calibrated(finding, one.banks[label], query)))
    return {label: np.mean(several, axis=0) for label, several in found.items()}


def _tasks(task: AdaptedTask, labels: Sequence[str], views: int) -> list[tuple[AdaptedTask, list[str]]]:
    """The task and, for each view, the task without a part of each label's annotated slices; each with the labels that
    it still knows something of."""
    parts = {label: _parts(task.banks[label], views) for label in labels}
    tasks = [(task, list(labels))]
    for view in range(views):
        able = [label for label in labels if view < len(parts[label])]
        if able:
            tasks.append((task.without({label: parts[label][view] for label in able}), able))
    return tasks


def _parts(bank: SupportBank, views: int) -> list[list[int]]:
    """Every so many-th annotated slice along each volume, in turn; no part without which nothing would be known."""
    drawn = [k for k in range(len(bank)) if not bank.pseudo_labelled[k]]
    drawn.sort(key=lambda k: (bank.volumes[k], bank.positions[k]))
    parts = [drawn[view::views] for view in range(min(views, len(drawn)))] if len(drawn) > 1 else []
    return [part for part in parts if any(bank.shows[k] for k in drawn if k not in part)]


def probability(proposals: Proposals) -> np.ndarray:
    """The probability (n, S, S) that the target is in each cell: there at all, and then there."""
    return np.asarray((proposals.presence[:, None, None] * cell_probabilities(proposals.logits)).astype(np.float32))


def _bits(p: np.ndarray) -> np.ndarray:
    """Entropy of a yes or no, in bits."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
