"""Files that break their format's rules, and headers that two libraries read differently."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssmsam.reading import UnreadableVolume, read_grid, read_volume
from ssmsam.volume.volume import Grid


def nifti(path: Path, *, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int]) -> Path:
    """A small volume whose header has two opinions on where it lies."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), sform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def as_itk_places(path: Path, grid: Grid) -> None:
    """Every corner of the grid lies where ITK has it."""
    image = sitk.ReadImage(str(path))
    corners = [(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (4, 3, 2)]
    expected = [image.TransformIndexToPhysicalPoint(corner) for corner in corners]
    np.testing.assert_allclose(grid.to_lps(np.array(corners, dtype=float)), expected, atol=1e-3)


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 1), (1, 0), (0, 1), (4, 4)])
def test_a_nifti_file_lies_where_viewers_show_it(tmp_path: Path, codes: tuple[int, int]) -> None:
    sform, qform = np.diag([2.0, 2.0, 3.0, 1.0]), np.diag([-2.0, -2.0, 3.0, 1.0])
    sform[:3, 3], qform[:3, 3] = (10, 20, 30), (-40, 5, 60)
    path = nifti(tmp_path / "image.nii.gz", sform=sform, qform=qform, codes=codes)
    as_itk_places(path, read_grid(path))
    as_itk_places(path, read_volume(path).grid)


@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (0, 0)])
def test_a_negative_voxel_size_is_read_as_viewers_read_it(tmp_path: Path, codes: tuple[int, int]) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    path = nifti(tmp_path / "image.nii", sform=affine, qform=affine, codes=codes)
    data = bytearray(path.read_bytes())
    data[80:84] = struct.pack("<f", -2.0)
    path.write_bytes(data)
    as_itk_places(path, read_grid(path))


def test_a_header_that_does_not_say_where_the_voxels_begin_is_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "image.nii", sform=np.eye(4), qform=np.eye(4), codes=(1, 1))
    data = bytearray(path.read_bytes())
    data[108:112] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(UnreadableVolume, match="vox_offset"):
        read_volume(path)


@pytest.mark.parametrize("damage", [slice(-8, -4), slice(-4, None)], ids=["checksum", "length"])
@pytest.mark.parametrize("cut", [False, True], ids=["changed", "cut off"])
def test_a_compressed_file_is_whole_to_its_end(tmp_path: Path, damage: slice, cut: bool) -> None:
    path, noise = tmp_path / "image.nii.gz", np.random.default_rng(0).integers(0, 999, (20, 20, 20), dtype=np.int16)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"some remark")
    assert np.array_equal(read_volume(path).array, noise.T)
    data = bytearray(whole)
    data[damage] = b"" if cut else b"\xff\x01\x02\x03"
    path.write_bytes(data)
    with pytest.raises(UnreadableVolume, match="damaged or cut short"):
        read_volume(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tilt=st.floats(-0.4, 0.4), turned=st.booleans(), spacing=st.floats(0.3, 6), place=st.floats(-300, 300))
def test_so_does_one_that_is_tilted(tmp_path: Path, tilt: float, turned: bool, spacing: float, place: float) -> None:
    cos, sin = np.cos(tilt), np.sin(tilt)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = place
    if turned:
        affine[:3, :2] *= -1
    path = nifti(tmp_path / "image.nii", sform=affine, qform=affine, codes=(0, 1))
    as_itk_places(path, read_grid(path))


def test_a_quaternion_that_is_a_little_too_long_is_no_obstacle(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    path = nifti(tmp_path / "image.nii", sform=affine, qform=affine, codes=(1, 1))
    data = bytearray(path.read_bytes())
    data[256:268] = struct.pack("<3f", 0.0, 0.0, 1.00001)
    path.write_bytes(data)
    assert read_volume(path).shape == (3, 4, 5)


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "image.nrrd", "image.mha"])
@pytest.mark.parametrize("seed", range(12))
def test_damage_of_any_kind_is_one_kind_of_error(tmp_path: Path, name: str, seed: int) -> None:
    path, rng = tmp_path / name, np.random.default_rng(seed)
    sitk.WriteImage(sitk.GetImageFromArray(rng.integers(0, 99, (3, 8, 8), dtype=np.int16)), str(path))
    data = bytearray(path.read_bytes())
    if seed % 3 == 0:
        data = data[: int(rng.integers(len(data)))]
    else:
        for where in rng.integers(0, min(len(data), 400), 1 + seed):
            data[where] = int(rng.integers(256))
    path.write_bytes(data)
    for read in (read_volume, read_grid):
        with contextlib.suppress(UnreadableVolume):  # not all damage can be seen
            read(path)


def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = nifti(tmp_path / "image.nii", sform=np.eye(4), qform=np.eye(4), codes=(1, 1))
    data = bytearray(path.read_bytes())
    data[42:48] = struct.pack("<3h", 30000, 30000, 1000)
    path.write_bytes(data)
    with pytest.raises(UnreadableVolume, match="claims"):
        read_volume(path)


@pytest.mark.parametrize("where", ["../secret.raw", "secret/", "/dev/zero", "LIST", "secret.raw.%03d 1 3 1", "LOC"])
@pytest.mark.parametrize("name", ["image.mha", "image.mhd", "image.nrrd", "image.nhdr"])
def test_no_header_reads_another_file(tmp_path: Path, name: str, where: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(2 * 60))
    (folder / "secret").mkdir()
    path = folder / name
    if name.startswith("image.m"):
        head = f"ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = {where}\n"
    else:
        head = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\ndata file: {where}\n\n"
        )
    path.write_text(head)
    for read in (read_volume, read_grid):
        with pytest.raises(UnreadableVolume, match="voxels are not in it"):
            read(path)


@pytest.mark.parametrize("name", ["image.mhd", "image.nhdr"])
def test_voxels_in_a_file_beside_the_header_are_read(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    sitk.WriteImage(image, str(tmp_path / name))
    assert read_volume(tmp_path / name).array.sum() == np.arange(60).sum()
