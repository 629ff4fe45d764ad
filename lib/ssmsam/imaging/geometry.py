"""Checks on affines that come from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssmsam.imaging.unreadable import UnreadableVolume
from ssmsam.imaging.volume import Grid

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS millimetres into LPS millimetres and back."""

ORTHOGONAL = 1e-3
"""Largest cosine between two axes that still counts as a right angle (0.06 degrees)."""


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the axes of the (4, 4) affine are not at right angles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths == 0).any():
        return False  # no direction at all: Grid refuses that with its own message
    axes = affine[:3, :3] / lengths
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > ORTHOGONAL)


def orthogonal_grid(shape: tuple[int, int, int], affine: np.ndarray, source: Path) -> Grid:
    """The grid of a file: (slices, rows, columns) and the LPS affine. Raises UnreadableVolume when unusable."""
    try:
        grid = Grid(shape, affine)
    except ValueError as error:
        raise UnreadableVolume(f"{source}: {error}. Convert the image again from its source.") from error
    if is_sheared(grid.affine):
        raise UnreadableVolume(
            f"{source}: the axes are not at right angles (a sheared affine). "
            "Resample the image to a straight grid first, for instance with 'Resample Scalar Volume' in 3D Slicer."
        )
    return grid
