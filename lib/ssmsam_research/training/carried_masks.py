"""Masks that registration carries from one training volume to the next: what the few-shot decoder learns to trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.atlas import distances_on, propagated_to
from ssmsam.fewshot.config import ATLAS_STEPS, PseudoLabelConfig
from ssmsam.fewshot.pipeline import evenly_spread
from ssmsam.fewshot.support_bank import signed_distance
from ssmsam.files import whole_file
from ssmsam.models.frame import draw_mask
from ssmsam.registration.register import CoarseVolume, register
from ssmsam_research.labelled_sets import Case

SIDE = 64
"""Side of the kept maps."""


@dataclass(frozen=True, eq=False)
class CarriedMasks:
    """What one volume says of n slices of another. Of each label of ``values`` (L,): ``distance`` (L, n, 64, 64) int8
    in quarters of a cell, positive inside the carried mask, and ``likely`` (L,) in [0, 1]; ``trust`` (n, 64, 64) uint8
    of 255."""

    values: np.ndarray
    distance: np.ndarray
    likely: np.ndarray
    trust: np.ndarray

    def of(self, wanted: Sequence[int], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Distances in cells and trust (n, 64, 64) of the union of some labels on some slices, and how likely it is
        right; None where one of the labels was not carried."""
        numbers = [int(np.flatnonzero(self.values == value)[0]) for value in wanted if value in self.values]
        if len(numbers) < len(wanted):
            return None
        distance = self.distance[numbers][:, rows].max(axis=0) / np.float32(ATLAS_STEPS)
        return distance, self.trust[rows] / np.float32(255), float(self.likely[numbers].mean())


def carried_file(folder: Path, dataset: str, query: str, support: str) -> Path:
    """Where :func:`carry` keeps what ``support`` says of ``query``."""
    return folder / f"{dataset}-{query}-from-{support}.npz"


def carry(query: Case, support: Case, positions: np.ndarray, *, embedder: Embedder, path: Path) -> None:
    """Register two cases and keep in ``path`` what the second one's labels say of the slices at ``positions`` (n,) of
    the first. The labels are known on as many slices as the product completes."""
    here = embedder.open(query.read()[0])
    volume, labels = support.read()
    there = embedder.open(volume)
    moving = CoarseVolume.of(there.volume, there.scale)
    fixed = CoarseVolume.of(here.volume, here.scale, cell_mm=moving.cell_mm)
    registration = register(fixed, moving)
    slices = [int(np.argmin([abs(here.position_mm(n) - place) for n in range(here.count)])) for place in positions]
    values = [int(value) for value in np.unique(labels) if value]
    told = [
        propagated_to(here, slices, SIDE, registration, _distances(there, labels == value, moving)) for value in values
    ]
    distances, trusts, likely = zip(*told, strict=True)
    with whole_file(path, ".npz") as partial:
        np.savez(
            partial,
            values=np.array(values),
            distance=(np.stack(distances) * ATLAS_STEPS).round().clip(-127, 127).astype(np.int8),
            likely=np.array(likely, dtype=np.float32),
            trust=(trusts[0] * 255).round().astype(np.uint8),  # the same for all labels
        )


def _distances(source: VolumeEmbeddings, mask: np.ndarray, moving: CoarseVolume) -> torch.Tensor:
    """Cells inside the target on the grid of a coarse volume, from the true mask on evenly spread slices."""
    stack, side = source.plane.stack(mask), 128
    slices = evenly_spread(source, PseudoLabelConfig())
    drawn = torch.cat([draw_mask(stack[index], source.frame, side) for index in slices])[:, 0] > 0.5
    cell_mm = source.frame.input_mm * source.frame.size / side
    known = np.stack([signed_distance(one.numpy()) for one in drawn]) * cell_mm
    positions = np.array([source.position_mm(index) for index in slices])
    return distances_on(moving.grid, known, positions, source) / moving.cell_mm


def read_carried(path: Path) -> CarriedMasks:
    """What :func:`carry` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return CarriedMasks(arrays["values"], arrays["distance"], arrays["likely"], arrays["trust"])
