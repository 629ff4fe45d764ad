"""How unsure a few-shot model is of every voxel.

A decoder's own probabilities say how sure it is given its whole support. What it would have said without some of
the annotated slices says how much hangs on these: the model answers again without each part of them, and the entropy
is that of the mean answer (a deep ensemble's predictive entropy; here the members differ in their support, as in a
jackknife, which costs no encoder pass and no training).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ssmsam.active.forecast import calibrated
from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import DEFAULTS, FewShotConfig
from ssmsam.fewshot.pipeline import find
from ssmsam.fewshot.proposals import Proposals
from ssmsam.fewshot.selection import cell_probabilities
from ssmsam.fewshot.support import Support
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.frame import logits_to_pixels
from ssmsam.progress import Progress, silent

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
