"""Which part of one body is shown beside which part of another: the start of registration.

Two scans rarely begin and end at the same height. All offsets along the body are tried, each with a little freedom for
every block, and the one wins under which most blocks look more alike than by chance. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ssmsam.registration.coarse import typical_box
from ssmsam.registration.descriptor import averaged
from ssmsam.registration.field import Field
from ssmsam.registration.matching import unlikeness


@dataclass(frozen=True)
class AlignmentConfig:
    """``step`` is the side of a block in cells, ``overlap`` how many cells along the body both volumes share at
    least."""

    step: int = 5
    overlap: int = 15
    sideways: int = 2
    """Blocks that a block may move sideways while offsets are compared."""
    along: int = 1
    """The same along the body."""
    stiffness: float = 0.09
    """What moving sideways by a block costs, in standard deviations of likeness."""
    stiffness_along: float = 0.3
    most_scale: float = 1.25
    """How much wider or narrower one body may be."""


def aligned(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    fixed_features: torch.Tensor,
    moving_features: torch.Tensor,
    config: AlignmentConfig,
) -> Field:
    """Values (D, H, W) in [0, 1] of two volumes with cells of one size, and what :func:`~.descriptor.described` says of
    them -> the field that lays the bodies' boxes over each other, at the best offset along the body."""
    start = _boxes_aligned(fixed, moving, config.most_scale)
    offsets, likeness = _likeness(start, fixed_features, moving_features, config)
    offset = start.offset.clone()
    offset[0] += float(offsets[likeness.argmax()])
    return Field(start.scale, offset, start.displacement)


def _boxes_aligned(fixed: torch.Tensor, moving: torch.Tensor, most_scale: float) -> Field:
    """Rows and columns by the bodies' boxes, slices as they are counted."""
    (low, high), (other_low, other_high) = (typical_box(one) for one in (fixed, moving))
    wider = ((other_high - other_low) / (high - low).clip(min=1.0)).clip(1 / most_scale, most_scale)
    offset = (other_low + other_high) / 2 - wider * (low + high) / 2
    return Field(
        torch.tensor([1.0, *wider], dtype=torch.float32),
        torch.tensor([0.0, *offset], dtype=torch.float32),
        torch.zeros(3, *fixed.shape),
    )


def _likeness(
    start: Field, fixed: torch.Tensor, moving: torch.Tensor, config: AlignmentConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets (n,) along the body in cells of the moving volume, and by how much blocks are more alike under each than
    by chance (n,)."""
    step, side = config.step, config.sideways
    least = -max(0, (start.shape[0] - config.overlap) // step)
    most = max(0, (moving.shape[1] - config.overlap) // step)
    unlike = unlikeness(start, fixed, moving, step, (max(-least, most), side, side))
    ways = [(y, x) for y in range(-side, side + 1) for x in range(-side, side + 1)]
    cost = torch.stack([torch.stack([unlike((z, *way)) for way in ways]) for z in range(least, most + 1)])
    gain = torch.nan_to_num(torch.nanmean(cost, dim=(0, 1)) - cost, nan=0.0)
    gain = averaged(gain.flatten(0, 1)[:, None])[:, 0].reshape(gain.shape)
    unit = gain.std()
    moved = torch.tensor([y * y + x * x for y, x in ways], dtype=torch.float32)[:, None, None, None]
    best = (gain - config.stiffness * unit * moved).amax(1)
    likeness = torch.stack([_with_freedom(best, number, float(unit), config) for number in range(len(best))])
    return torch.arange(least, most + 1) * float(step), likeness


def _with_freedom(gain: torch.Tensor, number: int, unit: float, config: AlignmentConfig) -> torch.Tensor:
    """The mean gain at one offset, where every block may take a neighbouring one: (n, d, h, w) -> scalar."""
    near = range(max(0, number - config.along), min(len(gain), number + config.along + 1))
    return torch.stack([gain[n] - config.stiffness_along * unit * (n - number) ** 2 for n in near]).amax(0).mean()
