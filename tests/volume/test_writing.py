from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssmsam.reading import UnreadableVolume, read_slice, read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import nifti_pieces, write_volume


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_what_is_written_is_read_back(tmp_path: Path, oblique: Volume, suffix: str, dtype: type) -> None:
    volume = oblique.with_array(oblique.array.astype(dtype))
    write_volume(volume, tmp_path / f"a{suffix}")
    read = read_volume(tmp_path / f"a{suffix}")
    assert read.array.dtype == dtype
    np.testing.assert_array_equal(read.array, volume.array)
    assert read.grid.matches(volume.grid)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_masks_are_written_as_bytes(tmp_path: Path, volume: Volume, suffix: str) -> None:
    mask = volume.array > 100
    write_volume(volume.with_array(mask), tmp_path / f"a{suffix}")
    read = read_volume(tmp_path / f"a{suffix}")
    assert read.array.dtype == np.uint8
    np.testing.assert_array_equal(read.array, mask)


def test_sform_and_qform_say_the_same(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "a.nii.gz")
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 1
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)


def test_the_same_volume_makes_the_same_bytes(tmp_path: Path, volume: Volume) -> None:
    for suffix in (".nii.gz", ".nrrd"):
        for name in ("one", "two"):
            write_volume(volume, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_nrrd_is_raw_or_gzip(tmp_path: Path, volume: Volume) -> None:
    even = Volume(np.zeros((20, 20, 20), np.uint8), volume.affine)
    write_volume(even, tmp_path / "gzip.nrrd")
    write_volume(even, tmp_path / "raw.nrrd", compress=False)
    assert b"encoding: gzip" in (tmp_path / "gzip.nrrd").read_bytes()[:600]
    assert b"encoding: raw" in (tmp_path / "raw.nrrd").read_bytes()[:600]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(volume, tmp_path / "a.nii.gz")
    before = (tmp_path / "a.nii.gz").read_bytes()

    def full_disk(image: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_volume(volume.with_array(volume.array + 1), tmp_path / "a.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_other_suffixes_are_refused(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(ValueError, match="has to end in"):
        write_volume(volume, tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_pieces_are_the_file(tmp_path: Path, oblique: Volume, dtype: type) -> None:
    volume = oblique.with_array(oblique.array.astype(dtype))
    size, pieces = nifti_pieces(volume)
    (tmp_path / "a.nii").write_bytes(b"".join(pieces))
    assert (tmp_path / "a.nii").stat().st_size == size
    read = read_volume(tmp_path / "a.nii")
    assert read.array.dtype == dtype
    np.testing.assert_array_equal(read.array, volume.array)
    assert read.grid.matches(volume.grid)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_slice_is_that_of_the_volume(tmp_path: Path, oblique: Volume, suffix: str) -> None:
    write_volume(oblique, tmp_path / f"a{suffix}")
    for index in range(oblique.shape[0]):
        np.testing.assert_array_equal(read_slice(tmp_path / f"a{suffix}", index)[0], oblique.array[index])
    with pytest.raises(UnreadableVolume):
        read_slice(tmp_path / f"a{suffix}", oblique.shape[0])


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1, 1), (8, 6, 4, 1)])
def test_a_slice_of_an_image_with_other_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2, 5)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    last = volume.shape[0] - 1
    np.testing.assert_array_equal(read_slice(tmp_path / "a.nii.gz", last)[0], volume.array[last])
