from __future__ import annotations

import doctest
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ssmsam.reading import read_volume
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.volume import Volume, as_volume
from ssmsam.volume.writing import write_volume

AFFINE = np.array([[-0.8, 0, 0, 30], [0, 0.9, 0, -20], [0, 0, 5, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def volume() -> Volume:
    return Volume(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4), AFFINE)


def same(one: Volume, other: Volume) -> bool:
    return (
        one.grid.matches(other.grid) and one.array.dtype == other.array.dtype and bool((one.array == other.array).all())
    )


def test_the_example_is_true() -> None:
    assert doctest.testmod(sys.modules[as_volume.__module__], optionflags=doctest.ELLIPSIS).failed == 0


def test_an_image_of_another_library_is_what_its_file_is(volume: Volume, tmp_path: Path) -> None:
    write_volume(volume, tmp_path / "a.nii.gz")
    write_volume(volume, tmp_path / "a.nrrd")
    opened = nib.load(tmp_path / "a.nii.gz")
    made = nib.Nifti1Image(volume.array.T, opened.affine)
    elsewhere = nib.MGHImage(volume.array.T.astype(np.int32), opened.affine)
    for image in (opened, made, sitk.ReadImage(tmp_path / "a.nii.gz"), sitk.ReadImage(tmp_path / "a.nrrd"), elsewhere):
        assert same(as_volume(image), read_volume(tmp_path / "a.nii.gz"))
    assert as_volume(volume) is volume


def test_an_array_needs_an_affine_and_an_image_none(volume: Volume) -> None:
    assert same(as_volume(volume.array, affine=AFFINE.tolist()), volume)
    assert as_volume(volume.array[0].astype(np.float64), affine=AFFINE).array.dtype == np.float32
    with pytest.raises(UnreadableVolume, match="affine="):
        as_volume(volume.array)
    with pytest.raises(ValueError, match="leave it out"):
        as_volume(volume, affine=AFFINE)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2, 2, 3)),
        np.zeros((2, 2, 2), dtype=complex),
        np.zeros((0, 2, 2)),
        sitk.Image(4, 4, 4, sitk.sitkVectorUInt8),
        nib.Nifti1Image(np.zeros((2, 2, 2, 5), dtype=np.int16), np.eye(4)),
        nib.MGHImage(
            np.zeros((2, 2, 2), dtype=np.int16), np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        ),
    ],
    ids=["colour", "complex", "empty", "vectors", "time", "sheared"],
)
def test_what_is_no_grey_volume_is_refused(image: np.ndarray) -> None:
    with pytest.raises(UnreadableVolume, match="the image"):
        as_volume(image, affine=np.eye(4) if isinstance(image, np.ndarray) else None)


def test_another_kind_of_object_is_named() -> None:
    with pytest.raises(ValueError, match="got list"):
        as_volume([1, 2])  # type: ignore[arg-type]


def test_arrays_are_written_with_their_affine(volume: Volume, tmp_path: Path) -> None:
    write_volume(volume.array, tmp_path / "a.nii.gz", affine=AFFINE)
    assert same(read_volume(tmp_path / "a.nii.gz"), volume)
