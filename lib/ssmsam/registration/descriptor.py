"""What cells are compared by: self-similarities of their surroundings, and a little of their intensity."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_REACH = 2
"""Cells from a cell to the six neighbours whose patches are compared with each other."""
_NEIGHBOURS = ((0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1))
_PAIRS = tuple(
    (first, second)
    for number, first in enumerate(_NEIGHBOURS)
    for second in _NEIGHBOURS[number + 1 :]
    if sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) == 2
)
_LEAST = 1e-3
"""Of the mean variance: less is noise."""


def described(values: torch.Tensor, *, intensity: float) -> torch.Tensor:
    """Values (D, H, W) in [0, 1] -> (13, D, H, W): twelve self-similarities in [0, 1], which survive other contrasts
    (MIND-SSC, Heinrich et al. 2013), and the intensity times ``intensity``."""
    return torch.cat([self_similarities(values), intensity * values[None]])


def self_similarities(values: torch.Tensor) -> torch.Tensor:
    """(D, H, W) -> (12, D, H, W) in [0, 1]: how alike the patches around neighbours of a cell are, by pairs of them
    that share an edge of the cube around it."""
    padded = F.pad(values[None, None], (_REACH,) * 6, mode="replicate")
    depth, height, width = values.shape

    def neighbour(place: tuple[int, int, int]) -> torch.Tensor:
        z, y, x = (_REACH * step for step in place)
        return padded[..., z : z + depth, y : y + height, x : x + width]

    unlike = torch.cat([(neighbour(first) - neighbour(second)) ** 2 for first, second in _PAIRS], dim=1)
    unlike = averaged(unlike)
    unlike = unlike - unlike.amin(1, keepdim=True)
    variance = unlike.mean(1, keepdim=True)
    return torch.exp(-unlike / variance.clamp_min(float(variance.mean()) * _LEAST + 1e-12))[0]


def averaged(channels: torch.Tensor) -> torch.Tensor:
    """Means over three cells along each axis of (N, C, D, H, W); the border goes on beyond itself."""
    found = F.pad(channels, (1,) * 6, mode="replicate")
    for axis in (2, 3, 4):  # one axis after the other: a sixth of the time of a pool over all three
        cells = found.shape[axis] - 2
        found = found.narrow(axis, 0, cells).add(found.narrow(axis, 1, cells)).add_(found.narrow(axis, 2, cells))
    return found.div_(27)
