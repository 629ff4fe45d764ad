"""A baseline without a network: the annotated shape, carried into another patient by registration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ssmsam.cache import Cache
from ssmsam.progress import Progress, silent
from ssmsam.registration.register import CoarseVolume, Registration, indices, places_of, register, sampled
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Grid, Volume
from ssmsam_research.methods.interpolation import ShapeInterpolation
from ssmsam_research.protocols.fewshot_task import Support, Task

_registrations: Cache[tuple[str, str], Registration] = Cache(6)


@dataclass(frozen=True)
class CarriedShape:
    """The shape between annotated slices, filled by :class:`ShapeInterpolation`, laid
    on the query by registration of both volumes; of several supports the mean. In the query itself nothing is
    registered.
    """

    beyond: float = 0.5

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        shares = [self._share(support, task.query, progress) for support in task.supports]
        found: np.ndarray = np.mean(shares, axis=0) > 0.5
        return found

    def _share(self, support: Support, query: Volume, progress: Progress) -> np.ndarray:
        """How much of each voxel of the query is the target, in [0, 1]."""
        shape = ShapeInterpolation(beyond=self.beyond).segment(Task((support,), support.volume))
        if support.volume is query:
            return shape.astype(np.float32)
        registration, moving = registered(query, support.volume, progress)
        carried = registration.propagated(resampled(torch.from_numpy(shape).float(), support.volume.grid, moving))
        return resampled(carried, registration.grid, query.grid).numpy()


def registered(query: Volume, other: Volume, progress: Progress = silent) -> tuple[Registration, Grid]:
    """The query registered with another volume, and the grid of the other's coarse copy."""
    moving = CoarseVolume.of(other, recipe_for(other).scale(other))

    def made() -> Registration:
        fixed = CoarseVolume.of(query, recipe_for(query).scale(query), cell_mm=moving.cell_mm)
        return register(fixed, moving, progress=progress)

    return _registrations.recalled((query.digest, other.digest), made), moving.grid


def resampled(values: torch.Tensor, grid: Grid, wanted: Grid) -> torch.Tensor:
    """Values (D, H, W) of one grid on another, trilinear, 0 outside; slab by slab, for memory."""
    first = indices(Grid((1, *wanted.shape[1:]), wanted.affine))
    slabs = []
    for index in range(wanted.shape[0]):
        there = grid.to_ijk(wanted.to_lps(first + np.array([0, 0, index])))
        slabs.append(sampled(values[None], places_of(there, (1, *wanted.shape[1:])), outside=0.0)[0])
    return torch.cat(slabs)
