"""How unlike the blocks of one volume are to those around them in another."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ssmsam.progress import stop_if_cancelled
from ssmsam.registration.coarse import inside, sampled
from ssmsam.registration.descriptor import averaged
from ssmsam.registration.field import Field, block_means, lattice


def unlikeness(
    field: Field, fixed: torch.Tensor, moving: torch.Tensor, step: int, margins: tuple[int, int, int]
) -> Callable[[tuple[int, int, int]], torch.Tensor]:
    """A function of moves (z, y, x), in blocks of ``step`` cells and not beyond ``margins``: the mean squared
    difference (d, h, w) between the blocks of a fixed volume and those that many blocks from where the field takes
    them, NaN outside the moving one. ``fixed`` and ``moving`` (C, D, H, W) are features."""
    here = block_means(fixed, step)
    places = field.at(lattice(field.shape, step, margins))
    for _ in range(step // 2):
        moving = averaged(moving[None])[0]
    there = torch.where(inside(places, moving.shape[1:]), sampled(moving, places), float("nan"))

    def unlike(move: tuple[int, int, int]) -> torch.Tensor:
        stop_if_cancelled()
        firsts = [margin + one for margin, one in zip(margins, move, strict=True)]
        part = tuple(slice(first, first + n) for first, n in zip(firsts, here.shape[1:], strict=True))
        return (there[(slice(None), *part)] - here).square_().mean(0)

    return unlike
