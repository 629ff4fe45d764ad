"""The same anatomy, however it is stored, lies at the same place in the patient."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ssmsam.reading import read_grid, read_volume
from ssmsam.volume.geometry import axis_codes
from ssmsam.volume.volume import Volume, reoriented
from ssmsam.volume.writing import write_volume

ALL_CODES = ["".join(c) for axes in permutations(("LR", "AP", "SI")) for c in product(*axes)]


def places(volume: Volume) -> np.ndarray:
    """LPS millimetres of the voxels in the order of their values: every value occurs once."""
    order = np.argsort(volume.array, axis=None)
    kji = np.stack(np.unravel_index(order, volume.shape), axis=1)
    return volume.grid.to_lps(kji[:, ::-1])


@pytest.mark.parametrize("codes", ALL_CODES)
def test_every_storage_order_reads_to_the_same_places(tmp_path: Path, oblique: Volume, codes: str) -> None:
    stored = reoriented(oblique, codes)
    write_volume(stored, tmp_path / "image.nii.gz")
    read = read_volume(tmp_path / "image.nii.gz")
    assert axis_codes(read.grid) == codes
    np.testing.assert_allclose(places(read), places(oblique), atol=1e-4)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PSR", "LSA"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_simpleitk_puts_voxels_where_we_put_them(tmp_path: Path, oblique: Volume, codes: str, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    write_volume(reoriented(oblique, codes), path)
    read, itk = read_volume(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(read.array, sitk.GetArrayFromImage(itk))
    for ijk in ((0, 0, 0), (4, 3, 2), tuple(n - 1 for n in read.shape[::-1])):
        expected = itk.TransformIndexToPhysicalPoint(ijk)
        np.testing.assert_allclose(read.grid.to_lps(np.array([ijk]))[0], expected, atol=1e-4)
    assert read_grid(path).matches(read.grid)


def test_what_simpleitk_writes_reads_to_the_same_places(tmp_path: Path, oblique: Volume) -> None:
    image = sitk.GetImageFromArray(oblique.array)
    image.SetSpacing(oblique.spacing[::-1])
    image.SetDirection((oblique.affine[:3, :3] / oblique.spacing[::-1]).ravel().tolist())
    image.SetOrigin(oblique.affine[:3, 3].tolist())
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"image{suffix}"))
        read = read_volume(tmp_path / f"image{suffix}")
        np.testing.assert_array_equal(read.array, oblique.array)
        assert read.grid.matches(oblique.grid)


def test_reorienting_keeps_what_is_known_of_the_series(ct: Volume) -> None:
    there = reoriented(ct, "RSA")
    back = reoriented(there, axis_codes(ct.grid))
    assert there.modality == "CT"
    np.testing.assert_array_equal(back.array, ct.array)
    assert back.grid.matches(ct.grid)


@pytest.mark.parametrize("codes", ["LP", "LRS", "XYZ", "LPSS"])
def test_codes_that_are_no_orientation_are_refused(volume: Volume, codes: str) -> None:
    with pytest.raises(ValueError, match="three directions"):
        reoriented(volume, codes)
