"""How the anatomy moves between the annotated slices of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch.nn.functional as F

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.config import MOTION_STEPS
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.ops import evenly_spaced
from ssmsam.progress import Progress, silent
from ssmsam.registration.slices import SIDE, SliceMotion, both_ways


def motions(slices: Sequence[LabelledSlice], *, progress: Progress = silent) -> dict[str, SliceMotion]:
    """How the anatomy moves from the first labelled slice of each volume to its last.

    Pairs of slices that were registered before are remembered.

    Args:
        slices: Labelled slices, of whatever label.
        progress: ``progress("motion", done, total)``; raising :class:`~ssmsam.progress.Cancelled` in it stops.

    Returns:
        By volume, of those with two or more labelled slices.
    """
    volumes = {one.volume: one.embeddings for one in slices}
    stations = {
        name: _stations(volume, sorted({one.index for one in slices if one.volume == name}))
        for name, volume in volumes.items()
    }
    total, done, found = sum(len(several) - 1 for several in stations.values()), 0, {}
    for name, several in stations.items():
        steps = []
        for lower, upper in pairwise(several):
            progress("motion", done, total)
            steps.append(_remembered_step(volumes[name], lower, upper))
            done += 1
        if steps:
            positions = np.array([volumes[name].position_mm(index) for index in several])
            found[name] = SliceMotion(positions, np.stack(steps))
    if total:
        progress("motion", total, total)
    return found


def steps_ahead(volume: VolumeEmbeddings) -> list[Callable[[], object]]:
    """What :func:`motions` will want of a volume whose annotated slices are no more than :data:`MOTION_STEPS` apart:
    each call registers one slice with the next, about a tenth of a second, and is remembered."""
    along = sorted(range(volume.count), key=volume.position_mm)
    return [partial(_remembered_step, volume, lower, upper) for lower, upper in pairwise(along)]


def _stations(volume: VolumeEmbeddings, labelled: Sequence[int]) -> list[int]:
    """The slices that are registered one with the next, along the volume: the labelled ones and those between."""
    between = [
        first + step
        for first, last in pairwise(labelled)
        for step in evenly_spaced(last - first + 1, MOTION_STEPS + 1)[1:]
    ]
    return sorted([labelled[0], *between], key=volume.position_mm)


def _remembered_step(volume: VolumeEmbeddings, lower: int, upper: int) -> np.ndarray:
    step: np.ndarray = volume.derived(("motion", lower, upper), partial(_step, volume, lower, upper))
    return step


def _step(volume: VolumeEmbeddings, lower: int, upper: int) -> np.ndarray:
    return both_ways(_pixels(volume, lower), _pixels(volume, upper))


def _pixels(volume: VolumeEmbeddings, index: int) -> np.ndarray:
    """(2 SIDE, 2 SIDE): a slice as the encoder sees it, coarser."""
    pixels = F.adaptive_avg_pool2d(volume.inputs([index])[:, 1], 2 * SIDE)[0]
    return np.asarray(pixels.numpy())
