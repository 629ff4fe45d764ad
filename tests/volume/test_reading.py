from __future__ import annotations

import gzip
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ssmsam.reading import UnreadableVolume, read_grid, read_slice, read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """A NIfTI file of an (i, j, k) array."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def set_rescale(path: Path, slope: float, intercept: float) -> None:
    """Write slope and intercept into the header of an uncompressed NIfTI file."""
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_types_that_fit_are_kept(tmp_path: Path, dtype: type) -> None:
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    read = read_volume(save(tmp_path / "a.nii", array))
    assert read.array.dtype == dtype
    np.testing.assert_array_equal(read.array, array.T)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(np.float64, np.float32), (np.int64, np.int16), (np.int32, np.int16), (np.uint32, np.int16)],
)
def test_wide_types_become_narrow_and_never_float64(tmp_path: Path, stored: type, expected: type) -> None:
    array = np.arange(24).astype(stored).reshape(2, 3, 4)
    assert read_volume(save(tmp_path / "a.nii.gz", array)).array.dtype == expected


def test_large_integers_survive(tmp_path: Path) -> None:
    array = np.array([[[-100_000, 2_000_000]]], np.int32)
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii", array)).array.ravel(), array.ravel())


def test_big_endian_files_are_read_as_native_numbers(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    image = nib.Nifti1Image(array, np.eye(4), header=nib.Nifti1Header(endianness=">"), dtype=array.dtype)
    nib.save(image, tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii")
    assert read.array.dtype == np.int16
    np.testing.assert_array_equal(read.array, array.T)


def test_rescale_to_fractions_gives_float32(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    set_rescale(path, 0.5, -3.25)
    read = read_volume(path)
    assert read.array.dtype == np.float32
    np.testing.assert_allclose(read.array.T.ravel(), np.arange(8) * 0.5 - 3.25)


def test_rescale_to_whole_numbers_stays_integer(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.arange(8, dtype=np.uint16).reshape(2, 2, 2))
    set_rescale(path, 1, -1024)
    read = read_volume(path)
    assert read.array.dtype == np.int16
    np.testing.assert_array_equal(read.array.T.ravel(), np.arange(8) - 1024)


def test_compressed_file_is_read_though_an_uncompressed_one_lies_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8))
    save(tmp_path / "a.nii.gz", np.ones((2, 2, 2), np.uint8))
    assert read_volume(tmp_path / "a.nii.gz").array.all()
    assert not read_volume(tmp_path / "a.nii").array.any()


def test_plain_images_become_one_slice(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    read = read_volume(save(tmp_path / "a.nii.gz", array))
    assert read.shape == (1, 4, 3)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    nrrd = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(nrrd.array, array[None])
    assert read_grid(tmp_path / "a.nrrd").shape == (1, 3, 4)


def test_a_fourth_axis_of_one_is_dropped(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii.gz", array)).array, array[..., 0].T)


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros((2, 3, 4, 5), np.int16))
    for read in (read_volume, read_grid):
        with pytest.raises(UnreadableVolume, match="time point"):
            read(path)


def test_colour_is_refused(tmp_path: Path) -> None:
    rgb = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UnreadableVolume, match="colour"):
        read_volume(save(tmp_path / "a.nii.gz", rgb))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True), str(tmp_path / "a.nrrd"))
    with pytest.raises(UnreadableVolume, match="3 values per voxel"):
        read_volume(tmp_path / "a.nrrd")


def test_a_sheared_grid_is_refused_with_the_next_step(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.3
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), affine)
    image.set_sform(affine, code=1)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableVolume, match="Resample"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_sheared_sform_gives_way_to_a_straight_qform(tmp_path: Path) -> None:
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    sheared = affine.copy()
    sheared[0, 2] = 0.5
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), sheared)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_grid(tmp_path / "a.nii.gz").affine, np.diag([2.0, 2.0, 3.0, 1.0]), atol=1e-6)


def test_a_grid_is_read_without_the_voxels(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(content[:352])
    assert read_grid(tmp_path / "a.nii").matches(oblique.grid)


def test_a_volume_outlives_its_file(tmp_path: Path, volume: Volume) -> None:
    write_volume(volume, tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(b"\0" * (tmp_path / "a.nii").stat().st_size)
    np.testing.assert_array_equal(read.array, volume.array)


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz", "cut.nrrd"])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    array = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    write_volume(Volume(array, np.eye(4)), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableVolume):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_rubbish_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an image at all" * 100)
    for read in (read_volume, read_grid):
        with pytest.raises(UnreadableVolume, match=name):
            read(tmp_path / name)


def test_gzip_of_rubbish_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"no header" * 100))
    with pytest.raises(UnreadableVolume):
        read_volume(tmp_path / "a.nii.gz")


def test_what_does_not_exist_or_has_no_known_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableVolume, match="no such file"):
        read_volume(tmp_path / "missing.nii.gz")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableVolume, match="unknown kind of file"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("array", "slope", "message"),
    [
        (np.full((2, 3, 4), 1e300), 1.0, "voxels of more than 3.4e\\+38"),
        (np.arange(24, dtype=np.int16).reshape(2, 3, 4), 1e38, "a slope of 1e\\+38 and an intercept of 0 make voxels"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_beyond_those_of_images_are_refused(
    tmp_path: Path, array: np.ndarray, slope: float, message: str
) -> None:
    path = save(tmp_path / "a.nii", array)
    set_rescale(path, slope, 0)
    with pytest.raises(UnreadableVolume, match=message):
        read_volume(path)


def test_one_slice_is_that_of_the_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.arange(24, dtype=">i2").reshape(2, 3, 4))
    for slope, intercept in ((1, 0), (1, -1024), (0.5, 3)):
        set_rescale(path, slope, intercept)
        volume = read_volume(path)
        pixels, _ = read_slice(path, 2)
        assert pixels.dtype == volume.array.dtype
        np.testing.assert_array_equal(pixels, volume.array[2])


def test_axes_without_a_direction_are_refused(tmp_path: Path) -> None:
    head = "NRRD0005\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\nspace: LPS\n"
    for directions, refused in (("none (0,1,0) (0,0,1)", True), ("(1,0,0) (0,1,0) (0,0,1)", False)):
        path = tmp_path / "a.nrrd"
        path.write_bytes(f"{head}space directions: {directions}\n\n".encode() + bytes(240))
        with pytest.raises(UnreadableVolume, match="2 axes only") if refused else nullcontext():
            read_grid(path)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_a_compressed_metaimage_with_a_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    array = np.random.default_rng(0).integers(0, 2000, (9, 20, 30)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name), True)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, array)
    path = tmp_path / (name if name == "a.mha" else "a.zraw")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UnreadableVolume, match="damaged"):
        read_volume(tmp_path / name)


def test_a_file_under_the_name_of_the_other_kind_says_so(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16)).read_bytes()
    for name, content, step in (
        ("b.nii", gzip.compress(plain), "name it .nii.gz"),
        ("c.nii.gz", plain, "name it .nii"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableVolume, match=step):
            read_volume(tmp_path / name)
