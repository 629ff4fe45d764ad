from __future__ import annotations

import tempfile
import zlib
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.reading import read_volume
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.mask_files import MaskFormat, centroids, slice_as_json, slice_from_json, write_mask
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Volume, reoriented


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


def unpacked(packed: dict) -> np.ndarray:
    assert packed["encoding"] == "zlib"
    return np.frombuffer(zlib.decompress(b64decode(packed["data"])), np.uint8).reshape(packed["shape"])


@given(codes=st.sampled_from(["LPS", "RAS", "LAS", "LPI", "PIR"]), axis=st.integers(0, 2), seed=st.integers(0, 99))
def test_a_slice_comes_back_at_its_place_in_the_patient(codes: str, axis: int, seed: int) -> None:
    """What the answer says of itself is enough to lay the slice onto the volume in any other order of storage."""
    random = np.random.default_rng(seed)
    plain = Volume(random.integers(0, 256, (3, 4, 5), dtype=np.uint8), np.diag([1.0, 2.0, 3.0, 1.0]))
    stored, plane = reoriented(plain, codes), Plane(axis)
    index = int(random.integers(stored.shape[axis]))
    packed = slice_as_json(plane.stack(stored.array)[index], index, plane=plane, grid=stored.grid)
    own = codes[packed["axis"]]
    shaped = np.expand_dims(unpacked(packed), axis)
    numbered = np.zeros_like(stored.array)
    np.moveaxis(numbered, axis, 0)[packed["index"]] = np.take(shaped, 0, axis)
    sides = [*packed["towards"]]
    sides.insert(axis, own)  # of the array's axes (slice, row, column)
    assert "".join(sides[::-1]) == codes
    back = reoriented(Volume(numbered, stored.affine), "LPS")
    found = back.array[back.array > 0]
    np.testing.assert_array_equal(found, plain.array[back.array > 0])


def test_a_slice_that_a_client_sends_is_what_it_was_sent() -> None:
    grid = Volume(np.zeros((3, 4, 5), np.uint8), np.eye(4)).grid
    for axis in range(3):
        plane = Plane(axis)
        mask = np.random.default_rng(axis).integers(0, 2, plane.slice_shape(grid), dtype=np.uint8)
        found = slice_from_json(slice_as_json(mask, 2, plane=plane, grid=grid), grid)
        assert found[:2] == (axis, 2) and np.array_equal(found[2], mask > 0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"index": "31", "data": ""}, "which slice"),
        ({"index": 1, "axis": 3, "data": ""}, "which slice"),
        ({"index": 1, "data": "not packed"}, "deflated"),
        ({"index": 1, "data": b64encode(zlib.compress(bytes(19))).decode()}, "4 x 5 pixels"),
        ({"index": 1, "data": b64encode(zlib.compress(bytes(10**6))).decode()}, "4 x 5 pixels"),
    ],
)
def test_a_slice_of_another_kind_is_refused(said: dict, why: str) -> None:
    grid = Volume(np.zeros((3, 4, 5), np.uint8), np.eye(4)).grid
    with pytest.raises(InvalidRequest, match=why):
        slice_from_json(said, grid)
