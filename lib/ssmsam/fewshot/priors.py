"""The prior of the neighbouring annotated slices: shape interpolation, as one more prompt.

A generalisation of the blurred support mask that SSM-SAM (Zhang et al., 2024) hands to its decoder: the signed
distances of the annotated slices below and above, interpolated, with how far they can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ssmsam.fewshot.config import PRIOR_REACH
from ssmsam.models.prompt_small import closeness


@dataclass(frozen=True, eq=False)
class Prior:
    """``distance`` (S, S) signed distance in cells, positive inside; ``between`` 1 when annotated slices are on both
    sides, else 0; ``closeness`` in (0, 1], 0 when there is no annotated slice in the volume."""

    distance: np.ndarray
    between: float
    closeness: float


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Cells to the border of a mask (S, S) bool, positive inside, within -PRIOR_REACH and PRIOR_REACH; float32."""
    if not mask.any():
        return np.full(mask.shape, -PRIOR_REACH, dtype=np.float32)
    # the border runs between pixels: half a cell on either side of it
    inside = ndimage.distance_transform_edt(mask) - 0.5
    outside = ndimage.distance_transform_edt(~mask) - 0.5
    return np.clip(np.where(mask, inside, -outside), -PRIOR_REACH, PRIOR_REACH).astype(np.float32)


def interpolated(distances: Mapping[float, np.ndarray], position: float, shape: tuple[int, int]) -> Prior:
    """The prior at ``position`` from signed distances at other positions, all in millimetres along the volume."""
    if not distances:
        return Prior(np.zeros(shape, dtype=np.float32), 0.0, 0.0)
    below = max((z for z in distances if z <= position), default=None)
    above = min((z for z in distances if z >= position), default=None)
    if below is None or above is None:
        near = below if below is not None else above
        assert near is not None
        return Prior(distances[near], 0.0, closeness(near - position))
    if above == below:
        return Prior(distances[below], 1.0, 1.0)
    share = (position - below) / (above - below)
    mixed = (1 - share) * distances[below] + share * distances[above]
    return Prior(mixed.astype(np.float32), 1.0, closeness(min(position - below, above - position)))
