from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.volume.geometry import PLANES, Plane
from ssmsam.volume.volume import Grid, Volume, reoriented

planes = st.sampled_from([Plane(0), Plane(1), Plane(2)])
indices = st.lists(st.tuples(*[st.integers(0, 300)] * 3), max_size=6).map(lambda p: np.array(p, float).reshape(-1, 3))


@given(planes, indices)
def test_joining_what_was_split_gives_the_index_back(plane: Plane, ijk: np.ndarray) -> None:
    np.testing.assert_array_equal(plane.join(*plane.split(ijk)), ijk)


@given(planes, st.tuples(st.integers(0, 8), st.integers(0, 6), st.integers(0, 4)))
def test_a_split_index_finds_the_same_voxel_in_the_stack(plane: Plane, ijk: tuple[int, int, int]) -> None:
    array = np.arange(5 * 7 * 9).reshape(5, 7, 9)
    i, j, k = ijk
    index, xy = plane.split(np.array([ijk]))
    x, y = xy[0].astype(int)
    assert plane.stack(array)[index[0], y, x] == array[k, j, i]


@given(planes)
def test_unstacking_undoes_stacking_without_a_copy(plane: Plane) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    stack = plane.stack(array)
    assert np.shares_memory(stack, array)
    np.testing.assert_array_equal(plane.unstack(stack), array)


@given(planes)
def test_sizes_agree_with_the_stack(plane: Plane) -> None:
    grid = Grid((2, 3, 4), np.diag([0.5, 1.5, 4.0, 1.0]))
    stack = plane.stack(np.zeros(grid.shape))
    assert (plane.count(grid), *plane.slice_shape(grid)) == stack.shape


@pytest.mark.parametrize(
    ("axis", "pixel_mm", "slice_mm"), [(0, (1.5, 0.75), 3.5), (1, (3.5, 0.75), 1.5), (2, (3.5, 1.5), 0.75)]
)
def test_millimetres_follow_the_axes(volume: Volume, axis: int, pixel_mm: tuple[float, float], slice_mm: float) -> None:
    assert Plane(axis).pixel_mm(volume.grid) == pytest.approx(pixel_mm)
    assert Plane(axis).slice_mm(volume.grid) == pytest.approx(slice_mm)


def test_no_points_split_into_no_slices() -> None:
    index, xy = Plane(1).split(np.zeros((0, 3)))
    assert index.shape == (0,)
    assert xy.shape == (0, 2)


@pytest.mark.parametrize("axis", [-1, 3, "axial"])
def test_other_axes_are_refused(axis: object) -> None:
    with pytest.raises(ValueError, match="axis"):
        Plane(axis)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("codes", "axis", "expected"),
    [
        ("LAS", 0, (False, False, False)),
        ("LPS", 0, (False, True, False)),
        ("RAS", 0, (False, False, True)),
        ("RPI", 0, (True, True, True)),
        ("LPS", 1, (True, False, False)),
        ("RPS", 2, (True, False, True)),
    ],
)
def test_mirroring_follows_the_patient_not_the_storage(volume: Volume, codes: str, axis: int, expected: tuple) -> None:
    assert Plane(axis).mirrored(reoriented(volume, codes).grid) == expected


@pytest.mark.parametrize("codes", ["LPS", "RAI", "SAR", "ILP", "PSL"])
def test_planes_of_the_body_are_named_whatever_the_storage_order(codes: str) -> None:
    volume = Volume(np.zeros((4, 5, 6)), np.diag([1.0, 2.0, 3.0, 1.0]))
    turned = reoriented(volume, codes)
    counts = {name: Plane.named(name, turned.grid).count(turned.grid) for name in PLANES}
    assert counts == {"axial": 4, "coronal": 5, "sagittal": 6}
    assert Plane.named(None, turned.grid) == Plane(0)


def test_the_nearest_plane_of_a_tilted_volume_is_meant() -> None:
    cos, sin = np.cos(np.deg2rad(35)), np.sin(np.deg2rad(35))
    affine = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1.0]])
    grid = Volume(np.zeros((4, 5, 6)), affine).grid
    assert [Plane.named(name, grid).axis for name in ("axial", "coronal", "sagittal")] == [0, 1, 2]
    with pytest.raises(ValueError, match="a plane is one of axial, coronal, sagittal, got 'oblique'"):
        Plane.named("oblique", grid)
