"""Where each cell of one volume is in another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ssmsam.registration.coarse import sampled


@dataclass(frozen=True, eq=False)
class Field:
    """Indices of a fixed volume -> indices of a moving one, as (slice, row, column): ``scale`` x index + ``offset``
    (3,) each, and what ``displacement`` (3, D, H, W) adds on the cells of the fixed volume."""

    scale: torch.Tensor
    offset: torch.Tensor
    displacement: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, height, width = self.displacement.shape[1:]
        return depth, height, width

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Indices (3, d, h, w) of the moving volume for those of the fixed one; beyond its border it goes on evenly."""
        return self._evenly(places) + sampled(self.displacement, places)

    def moved_to(self, places: torch.Tensor, step: int) -> Field:
        """The same with other indices of the moving volume: ``places`` (3, d, h, w) on :func:`lattice` of ``step``."""
        nodes = lattice(self.shape, step)
        change = places - self.at(nodes)
        lattice_places = (lattice(self.shape, 1) - (step - 1) / 2) / step
        return replace(self, displacement=self.displacement + sampled(change, lattice_places))

    def _evenly(self, places: torch.Tensor) -> torch.Tensor:
        return places * self.scale[:, None, None, None] + self.offset[:, None, None, None]


def lattice(shape: tuple[int, int, int], step: int, margins: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    """The middles (3, d, h, w) of blocks of ``step`` cells that fill an array of ``shape``, as indices, and so many
    blocks more on either side of each axis."""
    axes = [
        torch.arange(-margin, blocks(n, step) + margin) * float(step) + (step - 1) / 2
        for n, margin in zip(shape, margins, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def blocks(cells: int, step: int) -> int:
    """How many blocks of ``step`` cells lie along an axis."""
    return -(-cells // step)


def block_means(channels: torch.Tensor, step: int) -> torch.Tensor:
    """Channels (C, D, H, W) averaged over the blocks of :func:`lattice`; the border goes on beyond itself."""
    lacking = [pad for n in reversed(channels.shape[1:]) for pad in (0, blocks(n, step) * step - n)]
    return F.avg_pool3d(F.pad(channels[None], lacking, mode="replicate"), step)[0]
