"""Registration from beginning to end: two coarse volumes -> where each cell of the one is in the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as default

import torch

from ssmsam.progress import Progress, silent
from ssmsam.registration.alignment import AlignmentConfig, aligned
from ssmsam.registration.coarse import CoarseVolume, sampled
from ssmsam.registration.deformation import Refinement, Search, refined, searched
from ssmsam.registration.descriptor import described
from ssmsam.registration.field import Field, lattice
from ssmsam.volume.volume import Grid


@dataclass(frozen=True)
class RegistrationConfig:
    """``intensity`` is what intensities count beside self-similarities."""

    intensity: float = 3.0
    alignment: AlignmentConfig = default(default_factory=AlignmentConfig)
    searches: tuple[Search, ...] = (Search(5, 3), Search(3, 2), Search(2, 2))
    refinement: Refinement = default(default_factory=Refinement)


@dataclass(frozen=True, eq=False)
class Registration:
    """``places`` (3, D, H, W): where each cell of the fixed volume's ``grid`` is in the moving one, as indices (slice,
    row, column); ``error_mm`` (D, H, W): how far from itself a cell ends that goes there and, by the registration of
    the moving volume with the fixed one, back. Where the one direction contradicts the other, neither is to be
    trusted."""

    grid: Grid
    places: torch.Tensor
    error_mm: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Of the arrays."""
        return int(self.places.nbytes + self.error_mm.nbytes)

    def carried(self, values: torch.Tensor) -> torch.Tensor:
        """Values (D', H', W') on the moving volume's cells -> (D, H, W) on those of the fixed one."""
        return sampled(values[None], self.places)[0]


def register(
    fixed: CoarseVolume,
    moving: CoarseVolume,
    *,
    config: RegistrationConfig = RegistrationConfig(),
    progress: Progress = silent,
) -> Registration:
    """Lay ``moving`` over ``fixed``: two patients, or two scans of one. Cells must be of one size; the volumes may show
    different parts of the body as long as they share some. Raises ValueError for cells of different sizes.

    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("register", done, total)`` stops it.
    """
    if abs(fixed.cell_mm / moving.cell_mm - 1) > 1e-3:
        raise ValueError(f"cells of one size are registered, got {fixed.cell_mm} and {moving.cell_mm} mm")
    total = 2 * (len(config.searches) + 2)
    here, there = (described(one.values, intensity=config.intensity) for one in (fixed, moving))
    fields: list[Field] = []
    for one, features, other, other_features in ((fixed, here, moving, there), (moving, there, fixed, here)):
        done = len(fields) * total // 2

        def at(number: int, done: int = done) -> None:
            progress("register", done + number, total)

        fields.append(_laid_over(one, other, features, other_features, config, at))
    progress("register", total, total)
    cells = lattice(fields[0].shape, 1)
    places = fields[0].at(cells)
    error = (fields[1].at(places) - cells).square().sum(0).sqrt()
    return Registration(fixed.grid, places, fixed.cell_mm * error)


def one_way(
    fixed: CoarseVolume, moving: CoarseVolume, *, config: RegistrationConfig = RegistrationConfig()
) -> torch.Tensor:
    """The places of a :class:`Registration` without the way back: in half the time, and not known how far to trust."""
    here, there = (described(one.values, intensity=config.intensity) for one in (fixed, moving))
    field = _laid_over(fixed, moving, here, there, config, lambda number: None)
    return field.at(lattice(field.shape, 1))


def _laid_over(
    fixed: CoarseVolume,
    moving: CoarseVolume,
    here: torch.Tensor,
    there: torch.Tensor,
    config: RegistrationConfig,
    at: Callable[[int], None],
) -> Field:
    """One direction; ``at`` is told before each step how many are done."""
    at(0)
    field = aligned(fixed.values, moving.values, here, there, config.alignment)
    for number, search in enumerate(config.searches, 1):
        at(number)
        field = searched(field, here, there, search)
    at(len(config.searches) + 1)
    return refined(field, here, there, config.refinement)
