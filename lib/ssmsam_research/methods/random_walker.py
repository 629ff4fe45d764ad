"""Baseline: a random walker between annotated slices, which are its seeds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.segmentation import random_walker

from ssmsam.progress import Progress, silent
from ssmsam.volume.intensity import recipe_for
from ssmsam_research.protocols.fewshot_task import Task

_OBJECT, _OTHER = 1, 2


@dataclass(frozen=True)
class RandomWalker:
    """Between each two neighbouring annotated slices, in a box round both masks; nothing beyond the outermost ones.

    ``voxels`` bounds the cost: a larger box is made coarser within the slices. ``beta`` is how much a step between
    unequal intensities costs, ``margin_mm`` how far the box reaches beyond the masks.
    """

    beta: float = 130.0
    margin_mm: float = 15.0
    voxels: int = 60_000

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        masks = task.annotated
        scale = recipe_for(task.query).scale(task.query)
        filled = np.zeros(task.query.shape, dtype=bool)
        sections = list(pairwise(sorted(masks)))
        for number, (lower, upper) in enumerate(sections):
            progress("random walker", number, len(sections))
            box = (slice(None), *self._box(masks[lower] | masks[upper], task.query.spacing))
            if upper - lower > 1 and masks[lower].any() and masks[upper].any():
                image = scale.apply(task.query.array[lower : upper + 1][box])
                seeds = masks[lower][box[1:]], masks[upper][box[1:]]
                filled[lower + 1 : upper][box] = self._between(image, seeds, task.query.spacing)
        for index, mask in masks.items():
            filled[index] = mask
        return filled

    def _box(self, both: np.ndarray, spacing: tuple[float, float, float]) -> tuple[slice, slice]:
        rows, columns = (np.flatnonzero(both.any(axis=axis)) for axis in (1, 0))
        bounds = []
        for places, side, mm in ((rows, both.shape[0], spacing[1]), (columns, both.shape[1], spacing[2])):
            margin = max(1, round(self.margin_mm / mm))
            first, last = (places[0], places[-1]) if places.size else (0, 0)
            bounds.append(slice(max(0, int(first) - margin), min(side, int(last) + 1 + margin)))
        return bounds[0], bounds[1]

    def _between(
        self, image: np.ndarray, seeds: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
    ) -> np.ndarray:
        """Masks (slices - 2, rows, columns) of a section, image (slices, rows, columns) in [0, 1]."""
        step = max(1, int(np.ceil(np.sqrt(image.size / self.voxels))))
        coarse = ndimage.uniform_filter(image, size=(1, step, step))[:, ::step, ::step] if step > 1 else image
        labels = np.zeros(coarse.shape, dtype=np.int32)
        for index, seed in ((0, seeds[0]), (-1, seeds[1])):
            labels[index] = np.where(seed[::step, ::step], _OBJECT, _OTHER)
        if not (labels == _OBJECT).any() or not (labels == _OTHER).any() or not np.ptp(coarse):
            return np.zeros((len(image) - 2, *image.shape[1:]), dtype=bool)
        relative = np.array([spacing[0], step * spacing[1], step * spacing[2]])
        with warnings.catch_warnings():  # a faster solver would need another package
            warnings.simplefilter("ignore", category=UserWarning)
            probability = random_walker(
                coarse, labels, beta=self.beta, mode="cg_j", tol=1e-3, spacing=relative / relative.min(),
                return_full_prob=True,
            )[0]  # fmt: skip
        return _finer(probability[1:-1], step, image.shape[1:]) > 0.5


def _finer(probability: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Every ``step``-th pixel of each slice -> all pixels, linear in between."""
    if step == 1:
        return probability
    places = np.meshgrid(*(np.arange(side) / step for side in shape), indexing="ij")
    return np.stack([ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in probability])
