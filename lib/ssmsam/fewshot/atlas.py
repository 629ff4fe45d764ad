"""Labelled volumes as atlases: registered with another volume, they say where in it the target is.

The mask of another patient's slice in the same place misleads a decoder (see SSM-SAM's mask attention, which is for
neighbours). Propagated by registration of the whole volumes it lies where the target is, if not on its outline. How
far the registration is from inverse consistent goes with it; what that means the decoder has learned. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.config import ATLAS_ERROR_CELLS, ATLAS_REACH, ATLAS_STEPS
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.progress import Progress, silent
from ssmsam.registration.register import (
    CoarseVolume,
    Registration,
    can_hold,
    indices,
    places_of,
    register,
    sampled,
)
from ssmsam.volume.volume import Grid


@dataclass(frozen=True, eq=False)
class Guide:
    """What atlases say of a label on n slices: ``distances`` (n, S, S) in cells of the atlases, positive inside the
    propagated mask, ``trust`` (n, S, S) in each cell and ``likelihood``, how well the whole mask was propagated; the
    last two in [0, 1]."""

    distances: np.ndarray
    trust: np.ndarray
    likelihood: float

    def maps(self, rows: Sequence[int]) -> torch.Tensor:
        """What a decoder reads of some of the slices: see :func:`drawn_maps`."""
        return drawn_maps(self.distances[rows], self.trust[rows], self.likelihood)


@dataclass(frozen=True, eq=False)
class Atlas:
    """One labelled volume, small. ``volume`` names it as banks do, ``image`` (D, H, W) uint8 are its intensities on
    ``grid``, and ``distances`` (D, H, W) int8 of each label how far inside the target a cell is along the slices."""

    volume: str
    image: torch.Tensor
    grid: Grid
    distances: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, source: VolumeEmbeddings) -> Atlas:
        """A volume without labels yet. Reads its voxels."""
        small = CoarseVolume.of(source.volume, source.scale)
        return cls(source.key.digest, (small.values * 255).round().to(torch.uint8), small.grid, {})

    def with_label(self, label: str, bank: SupportBank, source: VolumeEmbeddings) -> Atlas:
        """The same with what a bank knows of a label in this volume."""
        rows = [k for k in range(len(bank)) if bank.volumes[k] == source.key.digest]
        known = bank.distances[rows] * bank.cell_mm[rows, None, None]
        cells = distances_on(self.grid, known, bank.positions[rows], source) / self.grid.spacing[0]
        kept = (cells * ATLAS_STEPS).round().clamp(-127, 127).to(torch.int8)
        return replace(self, distances={**self.distances, label: kept})

    @property
    def coarse(self) -> CoarseVolume:
        """What is registered."""
        return CoarseVolume(self.image.float() / 255, self.grid)


def distances_on(grid: Grid, known: np.ndarray, positions: np.ndarray, source: VolumeEmbeddings) -> torch.Tensor:
    """(D, H, W) float32: how far inside the target, in mm along its slices, the cells of a grid are by what is known of
    k slices of a volume, ``known`` (k, S, S) in mm at ``positions`` (k,) in mm; negative outside. Between these slices
    interpolated, beyond them as on the last."""
    order = np.argsort(positions)
    stack = torch.from_numpy(known[order]).float()
    ijk = source.grid.to_ijk(grid.to_lps(indices(grid)))
    along = np.interp(_positions(ijk, source), positions[order], np.arange(len(order)))
    xy = (source.frame.points_to_input(source.plane.split(ijk)[1]) + 0.5) * (stack.shape[-1] / source.frame.size) - 0.5
    return sampled(stack[None], places_of(np.column_stack([xy, along]), grid.shape))[0]


def _positions(ijk: np.ndarray, source: VolumeEmbeddings) -> np.ndarray:
    """Positions (N,) in mm along a volume of voxel indices (N, 3) between its slices too."""
    first, last = source.position_mm(0), source.position_mm(source.count - 1)
    along: np.ndarray = ijk[:, ::-1][:, source.plane.axis] / max(source.count - 1, 1)
    return first + (last - first) * along


def guide_for(
    atlases: Sequence[Atlas],
    label: str,
    query: VolumeEmbeddings,
    slices: Sequence[int],
    side: int,
    *,
    progress: Progress = silent,
) -> Guide | None:
    """What atlases of other volumes say of a label on the cells (n, side, side) of some slices; None without any.

    Several are averaged, see :func:`averaged`. Every pair of volumes is registered once and kept in memory for a while.
    """
    found = []
    for atlas in atlases:
        another = label in atlas.distances and atlas.volume != query.key.digest
        if another and can_hold(query.grid, atlas.grid.spacing[0]):
            registration = registered(atlas, query, progress=progress)
            found.append(propagated_to(query, slices, side, registration, atlas.distances[label].float() / ATLAS_STEPS))
    return Guide(*averaged(found)) if found else None


def guides_for(
    atlases: Sequence[Atlas],
    banks: Mapping[str, SupportBank],
    query: VolumeEmbeddings,
    slices: Sequence[int],
    side: int,
    *,
    progress: Progress = silent,
) -> dict[str, Guide]:
    """What atlases say of the labels of which no slice is annotated in this volume: see :func:`guide_for`."""
    order = sorted(slices)
    wanted = [label for label, bank in banks.items() if not bank.annotated(query.key.digest)]
    found = {label: guide_for(atlases, label, query, order, side, progress=progress) for label in wanted}
    return {label: guide for label, guide in found.items() if guide is not None}


def propagated_to(
    query: VolumeEmbeddings, slices: Sequence[int], side: int, registration: Registration, distances: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, float]:
    """What ``distances`` (D', H', W') in cells of the moving volume say of a query's slices: distances in cells and
    trust (n, side, side), and how well the whole mask was propagated."""
    inside = registration.propagated(distances)
    error = registration.error_mm / registration.grid.spacing[0]
    trust = torch.exp(-0.5 * (error / ATLAS_ERROR_CELLS) ** 2)
    cells = cells_of(torch.stack([inside, trust]), registration.grid, query, slices, side)
    return cells[0], cells[1], _quality(inside, error)


def _quality(inside: torch.Tensor, error: torch.Tensor) -> float:
    """How well a whole mask was propagated, in [0, 1]: the median error within it beside its inner radius. ``inside``
    and ``error`` (D, H, W) are in cells; small targets are missed more easily."""
    mask = inside > 0
    return float(torch.exp(-error[mask].median() / inside.max())) if mask.any() else 0.0


def averaged(guides: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray, float]:
    """What several volumes say, each with distances and trust (n, S, S) and how likely it is right, as one: distances
    are averaged in each cell by how far they are trusted there."""
    trusts = np.stack([trust * (1e-3 + likely) for _, trust, likely in guides])
    distance = (trusts * np.stack([one[0] for one in guides])).sum(0) / np.maximum(trusts.sum(0), 1e-6)
    return distance, np.max([one[1] for one in guides], axis=0), max(one[2] for one in guides)


def drawn_maps(distance: np.ndarray, trust: np.ndarray, likely: float) -> torch.Tensor:
    """What a decoder reads of propagated masks on n slices, from ``distance`` (n, S, S) in cells and ``trust``
    (n, S, S): (n, 3, S, S) in [-1, 1]."""
    maps = [np.clip(distance, -ATLAS_REACH, ATLAS_REACH) / ATLAS_REACH, trust, np.full_like(trust, likely)]
    return torch.from_numpy(np.stack(maps, axis=1).astype(np.float32))


def registered(atlas: Atlas, query: VolumeEmbeddings, *, progress: Progress = silent) -> Registration:
    """Where each place of a volume is in an atlas. Reads the voxels, unless it is remembered."""

    def made() -> Registration:
        here = CoarseVolume.of(query.volume, query.scale, cell_mm=atlas.grid.spacing[0])
        return register(here, atlas.coarse, progress=progress)

    found: Registration = query.derived(("registration", atlas.volume, atlas.grid.spacing[0]), made)
    return found


def cells_of(values: torch.Tensor, grid: Grid, query: VolumeEmbeddings, slices: Sequence[int], side: int) -> np.ndarray:
    """Values (C, D, H, W) on a grid -> (C, n, side, side) on the cells of a volume's slices, in the encoder's frame."""
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    xy = query.frame.points_to_slice((np.stack([x, y], axis=1) + 0.5) * (query.frame.size / side) - 0.5)
    ijk = [query.plane.join(np.full(len(xy), index), xy) for index in slices]
    cells = grid.to_ijk(query.grid.to_lps(np.concatenate(ijk)))
    return np.asarray(sampled(values, places_of(cells, (len(slices), side, side))).numpy())
