from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from ssmsam.reading import read_volume
from ssmsam.service.mask_files import MaskFormat, centroids, write_mask
from ssmsam.volume.volume import Volume


@pytest.fixture
def volume() -> Volume:
    affine = np.array([[0.7, 0, 0, -90], [0, -0.7, 0, 40], [0, 0, -4, 7], [0, 0, 0, 1.0]])
    return Volume(np.zeros((4, 6, 8), np.float32), affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".nii"])
@pytest.mark.parametrize("compress", [True, False])
def test_the_file_has_the_image_s_grid(volume: Volume, suffix: str, compress: bool) -> None:
    mask = np.random.default_rng(0).integers(0, 2, volume.shape, dtype=np.uint8)
    path = Path(write_mask(mask, volume, MaskFormat(suffix=suffix, compress=compress)))
    try:
        assert path.name.endswith(suffix)
        written = read_volume(path)
        assert written.grid.matches(volume.grid)
        np.testing.assert_array_equal(written.array, mask)
    finally:
        path.unlink()


def test_centroids_are_voxel_indices_in_the_viewers_order() -> None:
    mask = np.zeros((4, 6, 8), np.uint8)
    mask[3, 2, 5] = 1
    assert centroids(mask, {"liver": 1, "spleen": 2}) == {"liver": [5, 2, 3]}


def test_a_client_on_the_same_machine_does_not_save_onto_the_server_s_file(volume: Volume) -> None:
    """MONAI Label's client saves under the server's file name in the temporary folder."""
    path = Path(write_mask(np.zeros(volume.shape, np.uint8), volume))
    try:
        assert path.parent != Path(tempfile.gettempdir())
    finally:
        path.unlink()
