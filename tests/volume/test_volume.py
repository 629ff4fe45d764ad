from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssmsam.volume.volume import Grid, Volume

coordinates = arrays.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(3)), elements=st.floats(-500, 500))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Right- and left-handed, oblique and anisotropic grids."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.uniform(0.3, 8, 3)
    affine[:3, 3] = rng.uniform(-900, 900, 3)
    return Grid(draw(st.tuples(*[st.integers(1, 40)] * 3)), affine)


@given(grids(), coordinates)
def test_millimetres_come_back_as_the_same_voxel_index(grid: Grid, ijk: np.ndarray) -> None:
    np.testing.assert_allclose(grid.to_ijk(grid.to_lps(ijk)), ijk, atol=1e-7)


@given(grids())
def test_spacing_is_the_distance_of_neighbours_in_array_order(grid: Grid) -> None:
    origin = grid.to_lps(np.zeros((1, 3)))
    column, row, slice_ = np.linalg.norm(grid.to_lps(np.eye(3)) - origin, axis=1)
    np.testing.assert_allclose(grid.spacing, (slice_, row, column))


@given(grids())
def test_a_grid_holds_its_corner_voxels_and_nothing_beyond(grid: Grid) -> None:
    last = np.array(grid.shape[::-1]) - 1
    assert grid.contains(np.array([[0, 0, 0], last, last + 0.4])).all()
    assert not grid.contains(np.concatenate([last + np.eye(3), -np.eye(3)])).any()


@given(grids())
def test_grids_match_within_the_tolerance_only(grid: Grid) -> None:
    moved = grid.affine.copy()
    moved[0, 3] += 0.1
    other = Grid(grid.shape, moved)
    assert grid.matches(grid)
    assert grid.matches(other, tolerance_mm=0.2)
    assert not grid.matches(other)
    assert not grid.matches(Grid((grid.shape[0] + 1, *grid.shape[1:]), grid.affine))


def test_millimetres_do_not_blur_what_a_microscope_sees() -> None:
    affine = np.diag([4e-6, 4e-6, 4e-5, 1.0])
    mirrored = affine.copy()
    mirrored[0] *= -1
    mirrored[0, 3] = 4e-6 * 71
    grid = Grid((12, 64, 72), affine)
    assert grid.matches(Grid(grid.shape, affine + 1e-9))
    assert not grid.matches(Grid(grid.shape, mirrored))
    with pytest.raises(ValueError, match="invertible"):
        Grid(grid.shape, np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


def test_known_index_lies_at_known_place(volume: Volume) -> None:
    np.testing.assert_allclose(volume.grid.to_lps(np.array([[4, 2, 1]])), [[-31.5 + 3, 20.25 + 3, -7 + 3.5]])
    assert volume.spacing == (3.5, 1.5, 0.75)


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 4), (4, 4, 4, 4)])
def test_a_grid_refuses_shapes_that_are_not_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three non-empty axes"):
        Grid(shape, np.eye(4))  # type: ignore[arg-type]


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)])
def test_a_grid_refuses_affines_that_cannot_be_inverted(affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="invertible"):
        Grid((2, 2, 2), affine)


def test_digest_tells_voxels_type_shape_and_place_apart(volume: Volume) -> None:
    changed = volume.array.copy()
    changed[3, 2, 1] += 1
    moved = volume.affine.copy()
    moved[2, 3] += 0.01
    others = [
        volume.with_array(changed),
        volume.with_array(volume.array.astype(np.int32)),
        Volume(volume.array, moved),
        Volume(volume.array.reshape(7, 5, 9), volume.affine),
    ]
    assert len({volume.digest, *(other.digest for other in others)}) == 5


def test_digest_ignores_memory_layout(volume: Volume) -> None:
    assert volume.with_array(np.asfortranarray(volume.array)).digest == volume.digest


def test_another_array_keeps_the_grid_and_has_to_fit(ct: Volume) -> None:
    mask = ct.with_array((ct.array > 9).astype(np.uint8))
    assert mask.grid.matches(ct.grid)
    assert mask.modality == "CT"
    with pytest.raises(ValueError, match="shape"):
        ct.with_array(ct.array[1:])
    with pytest.raises(ValueError, match="3-D"):
        Volume(ct.array[0], ct.affine)
