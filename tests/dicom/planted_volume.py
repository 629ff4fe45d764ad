"""A small volume in which every voxel is different, on a grid that hides no mistake."""

from __future__ import annotations

import numpy as np
import pytest

from ssmsam.volume.volume import Volume


def turned(degrees: float) -> np.ndarray:
    """A rotation (3, 3) about a skew axis."""
    axis = np.array([2.0, -1.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def volume_of(degrees: float = 0.0, *, modality: str = "") -> Volume:
    """(5, 7, 9) int16 voxels 0..314 in a fixed disorder, spacing 3.5 x 1.5 x 0.75 mm, an offset, an LPS grid."""
    array = np.random.default_rng(0).permutation(5 * 7 * 9).astype(np.int16).reshape(5, 7, 9)
    affine = np.eye(4)
    affine[:3, :3] = turned(degrees) * (0.75, 1.5, 3.5)
    affine[:3, 3] = (-31.5, 20.25, -7.0)
    return Volume(array, affine, modality)


@pytest.fixture
def volume() -> Volume:
    return volume_of()


@pytest.fixture
def oblique() -> Volume:
    return volume_of(25)


@pytest.fixture
def ct() -> Volume:
    return volume_of(25, modality="CT")
