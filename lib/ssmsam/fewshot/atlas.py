"""Labelled volumes as atlases: registered with another volume, they say where in it the target is.

The mask of another patient's slice in the same place misleads a decoder (see SSM-SAM's mask attention, which is for
neighbours). Carried over by registration of the whole volumes it lies where the target is, if not on its outline; and
where registration there and back contradicts itself, it counts for little. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import expit

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.fewshot.bank import Bank
from ssmsam.imaging.volume import Grid
from ssmsam.progress import Progress, silent
from ssmsam.registration.coarse import CoarseVolume, indices, places_of, sampled
from ssmsam.registration.memory import RegistrationMemory
from ssmsam.registration.register import Registration, register

_STEPS = 4
"""Distances are kept in so many parts of a cell."""
_MEMORY = RegistrationMemory(6)


@dataclass(frozen=True)
class AtlasConfig:
    """How much a carried mask counts beside the decoder's own logits. Lengths are in cells of an atlas, 4 mm in a
    body."""

    slope: float = 0.5
    """Logits for each cell inside the target, or outside it."""
    reach: float = 7.5
    """Cells from the target's border beyond which it is not said with more certainty."""
    error: float = 4.5
    """Standard deviation of what registration there and back may be off, by which it is trusted in each cell."""
    certain: float = 0.1
    """Doubt of the decoder up to which it is believed: see :attr:`~ssmsam.fewshot.proposals.Proposals.doubt`."""
    lost: float = 0.25
    """Doubt from which on atlases are believed instead, where they are to be trusted."""
    doubted_slope: float = 1.5
    """The ``slope`` then."""
    doubted_reach: float = 13.0
    """The ``reach`` outside the target then."""
    even: float = 1.0
    """Median of what registration there and back may be off within a carried mask, over the mask's inner radius, with
    which it is as likely as not that the mask lies on the target: small targets are missed more easily."""
    width: float = 0.27
    """The odds are e times as high for so much less. Both are fitted to 152 masks that were carried between training
    patients (38 pairs, CT and MR), of which those with a Dice over 55 count as on the target."""
    middle_mm: float = 20.0
    """How far its middle is from the target's then (standard deviation)."""


@dataclass(frozen=True, eq=False)
class Guide:
    """What atlases say of a label on n slices: ``distances`` (n, S, S) in cells of the atlases, positive inside the
    carried mask, and ``trust`` (n, S, S) in each cell. ``overall`` is the trust in the mask as a whole, and
    ``likelihood`` the probability that it lies on the target, which both trusts hold as a factor; all in [0, 1]."""

    distances: np.ndarray
    trust: np.ndarray
    overall: float
    likelihood: float

    @property
    def mask(self) -> np.ndarray:
        """The carried mask (n, S, S) bool."""
        return self.distances > 0

    def nearness(self, found: np.ndarray, cell_mm: tuple[float, float, float], config: AtlasConfig) -> float:
        """Logarithm of how plausible it is that an object (n, S, S), not empty, is the target, by where its middle is.

        ``cell_mm`` are the sizes of a cell. Whatever is far is as plausible as it is that the mask was carried wrongly.
        """
        apart = (np.argwhere(found).mean(axis=0) - np.argwhere(self.mask).mean(axis=0)) * cell_mm
        near = self.likelihood * np.exp(-0.5 * (apart**2).sum() / config.middle_mm**2)
        return float(np.log(near + 1 - self.likelihood))

    def logits(self, doubt: float, config: AtlasConfig) -> np.ndarray:
        """(n, S, S) to be added to those of a decoder that is in ``doubt``.

        Beside one that knows the target they are a hint, cell by cell, if they are more likely right than not. Beside
        one that does not, a carried mask that is to be trusted rules out what lies elsewhere, also where registration
        says nothing.
        """
        share = float(np.clip((doubt - config.certain) / (config.lost - config.certain), 0, 1))
        elsewhere = self.trust + share * np.maximum(self.overall - self.trust, 0)
        slope = config.slope + share * (config.doubted_slope - config.slope)
        reach = config.reach + share * (config.doubted_reach - config.reach)
        trust = np.where(self.distances > 0, self.trust, elsewhere)
        heard = share + (1 - share) * max(0.0, 2 - 1 / max(self.likelihood, 1e-6))
        logits: np.ndarray = heard * slope * trust * self.distances.clip(-reach, config.reach)
        return logits.astype(np.float32)


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

    def with_label(self, label: str, bank: Bank, source: VolumeEmbeddings) -> Atlas:
        """The same with what a bank knows of a label in this volume."""
        rows = [k for k in range(len(bank)) if bank.volumes[k] == source.key.digest]
        known = bank.distances[rows] * bank.cell_mm[rows, None, None]
        cells = distances_on(self.grid, known, bank.positions[rows], source) / self.grid.spacing[0]
        kept = (cells * _STEPS).round().clamp(-127, 127).to(torch.int8)
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
    config: AtlasConfig,
    progress: Progress = silent,
) -> Guide | None:
    """What atlases of other volumes say of a label on the cells (n, side, side) of some slices; None without any.

    Several are averaged, each cell by how much they are to be trusted there, and by how likely they are right at all.
    Every pair of volumes is registered once and kept in memory for a while.
    """
    said, overalls, rights = [], [], []
    for atlas in atlases:
        if label in atlas.distances and atlas.volume != query.key.digest:
            registration = registered(atlas, query, progress=progress)
            inside = registration.carried(atlas.distances[label].float() / _STEPS)
            error = registration.error_mm / atlas.grid.spacing[0]
            trust = torch.exp(-0.5 * (error / config.error) ** 2)
            right = _likelihood(inside, error, config)
            overall = float(trust[inside > 0].mean()) if right else 0.0
            said.append(cells_of(torch.stack([inside, right * trust]), registration.grid, query, slices, side))
            overalls.append(right * overall)
            rights.append(right)
    if not said:
        return None
    distances, trusts = np.stack(said, axis=1)
    mean = (trusts * distances).sum(0) / np.maximum(trusts.sum(0), 1e-6)
    return Guide(mean, trusts.max(0), max(overalls), max(rights))


def _likelihood(inside: torch.Tensor, error: torch.Tensor, config: AtlasConfig) -> float:
    """Probability that the mask where carried distances ``inside`` (D, H, W) are positive lies on the target; they and
    the ``error`` (D, H, W) of registration there and back are in cells."""
    mask = inside > 0
    if not mask.any():
        return 0.0
    return float(expit((config.even - float(error[mask].median() / inside.max())) / config.width))


_ERROR_CELLS = 4.5
"""Cells that registration there and back may be off to be trusted by 0.6: a unit, the decoder learns what it means."""
_REACH = 8.0
"""Cells from the border of a carried mask beyond which it is not said with more certainty: a guess."""


def trusted(error: torch.Tensor) -> torch.Tensor:
    """Trust in [0, 1] by what registration there and back is off, in cells."""
    return torch.exp(-0.5 * (error / _ERROR_CELLS) ** 2)


def quality(inside: torch.Tensor, error: torch.Tensor) -> float:
    """How well a whole mask was carried, in [0, 1]: the median error within it beside its inner radius. ``inside`` and
    ``error`` (D, H, W) are in cells; small targets are missed more easily."""
    mask = inside > 0
    return float(torch.exp(-error[mask].median() / inside.max())) if mask.any() else 0.0


def averaged(told: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray, float]:
    """What several volumes say, each with distances and trust (n, S, S) and how likely it is right, as one: distances
    are averaged in each cell by how far they are trusted there."""
    trusts = np.stack([trust * (1e-3 + likely) for _, trust, likely in told])
    distance = (trusts * np.stack([one[0] for one in told])).sum(0) / np.maximum(trusts.sum(0), 1e-6)
    return distance, np.max([one[1] for one in told], axis=0), max(one[2] for one in told)


def drawn_maps(distance: np.ndarray, trust: np.ndarray, likely: float) -> torch.Tensor:
    """What a decoder is shown of carried masks on n slices, from ``distance`` (n, S, S) in cells and ``trust``
    (n, S, S): (n, 3, S, S) in [-1, 1]."""
    maps = [np.clip(distance, -_REACH, _REACH) / _REACH, trust, np.full_like(trust, likely)]
    return torch.from_numpy(np.stack(maps, axis=1).astype(np.float32))


def registered(atlas: Atlas, query: VolumeEmbeddings, *, progress: Progress = silent) -> Registration:
    """Where each place of a volume is in an atlas. Reads the voxels, unless it was asked before."""

    def made() -> Registration:
        here = CoarseVolume.of(query.volume, query.scale, cell_mm=atlas.grid.spacing[0])
        return register(here, atlas.coarse, progress=progress)

    return _MEMORY.recalled((atlas.volume, query.key.digest), made)


def cells_of(values: torch.Tensor, grid: Grid, query: VolumeEmbeddings, slices: Sequence[int], side: int) -> np.ndarray:
    """Values (C, D, H, W) on a grid -> (C, n, side, side) on the cells of a volume's slices, in the encoder's frame."""
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    xy = query.frame.points_to_slice((np.stack([x, y], axis=1) + 0.5) * (query.frame.size / side) - 0.5)
    ijk = [query.plane.join(np.full(len(xy), index), xy) for index in slices]
    cells = grid.to_ijk(query.grid.to_lps(np.concatenate(ijk)))
    found: np.ndarray = sampled(values, places_of(cells, (len(slices), side, side))).numpy()
    return found
