"""Registration: a body that was moved, stored otherwise or cut off is found again, and how far to trust it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssmsam.progress import Cancelled
from ssmsam.registration.register import (
    MOST_CELLS,
    CoarseVolume,
    Field,
    can_hold,
    cell_mm_for,
    features_of,
    lattice,
    one_direction,
    register,
    straight_grid,
)
from ssmsam.volume.intensity import Scale
from ssmsam.volume.volume import Grid, Volume

SCALE = Scale(0.0, 1.0)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def body(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A textured body (slices, rows, columns) in [0, 1] and one organ in it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:48, :40, :44]
    inside = ((y - 20) / 16) ** 2 + ((x - 22) / 18) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(inside.shape), 2.5)
    image = np.where(inside, 0.5 + 0.15 * texture / texture.std(), 0.0).clip(0, 1)
    organ = ((z - 24) / 7) ** 2 + ((y - 18) / 6) ** 2 + ((x - 30) / 5) ** 2 < 1
    image[organ] = 0.9
    return image.astype(np.float32), organ


def bent(array: np.ndarray, *, order: int) -> np.ndarray:
    """The same, shifted along the body and bent by a few cells."""
    z, y, x = np.mgrid[tuple(slice(n) for n in array.shape)].astype(float)
    places = [z + 6 + 1.5 * np.sin(x / 9), y + 1.5 * np.sin(z / 8), x + 1.5 * np.cos(y / 9)]
    return ndimage.map_coordinates(array.astype(np.float32), places, order=order, mode="nearest")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def coarse(image: np.ndarray, affine: np.ndarray = AFFINE) -> CoarseVolume:
    return CoarseVolume.of(Volume(image, affine), SCALE, cell_mm=4.0)


def on(grid_of: CoarseVolume, mask: np.ndarray, affine: np.ndarray = AFFINE) -> torch.Tensor:
    """A mask on the cells of a coarse volume, which may have been cut out."""
    cells = np.indices(grid_of.grid.shape).reshape(3, -1)[::-1].T
    ijk = np.rint(Volume(mask, affine).grid.to_ijk(grid_of.grid.to_lps(cells))).astype(int)
    k, j, i = (ijk[:, axis].clip(0, n - 1) for axis, n in zip((2, 1, 0), mask.shape, strict=True))
    return torch.from_numpy(mask[k, j, i].reshape(grid_of.grid.shape).astype(np.float32))


def test_an_organ_is_carried_to_a_body_that_is_shifted_and_bent() -> None:
    image, organ = body()
    fixed, moving = coarse(bent(image, order=1)), coarse(image)
    found = register(fixed, moving)
    truth = on(fixed, bent(organ, order=0) > 0.5).numpy() > 0.5
    propagated_mask = found.propagated(on(moving, organ)).numpy() > 0.5
    assert dice(on(moving, organ).numpy() > 0.5, truth) < 0.6, "the two lie apart before"
    assert dice(propagated_mask, truth) > 0.85
    assert float(found.error_mm[torch.from_numpy(truth)].median()) < 4.0


def test_millimetres_that_cannot_be_right_take_no_more_memory() -> None:
    for spacing in ((1.0, 1.0, 1e5), (1e5, 1.0, 1.0), (1e-6, 1e-6, 1.0), (1e5, 1e5, 1e5), (1e-5, 1e-5, 1e-5)):
        grid = Grid((12, 40, 44), np.diag([*spacing, 1.0]))
        assert np.prod(straight_grid(grid, cell_mm_for(grid)).shape) < 2 * MOST_CELLS
    assert can_hold(Grid((12, 40, 44), AFFINE), 4.0)
    for spacing in (1e5, 1e-5):
        assert not can_hold(Grid((12, 40, 44), np.diag([spacing, spacing, spacing, 1.0])), 4.0)


def test_one_way_alone_is_the_same_and_its_border_blocks_are_finite() -> None:
    image, _ = body()
    fixed, moving = coarse(bent(image, order=1)), coarse(image[10:])
    field = one_direction(fixed, moving, *(features_of(one.values) for one in (fixed, moving)))
    places = field.at(lattice(field.shape, 1))
    assert torch.isfinite(places).all()
    assert torch.equal(places, register(fixed, moving).places)


def test_there_and_back_contradict_each_other_for_strangers() -> None:
    image, organ = body()
    moving = coarse(image)
    friend, stranger = coarse(bent(image, order=1)), coarse(body(seed=7)[0][::-1].copy() ** 2)
    known = register(friend, moving).error_mm.median()
    assert float(register(stranger, moving).error_mm.median()) > 3 * float(known)
    assert organ.any()


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_the_order_in_which_voxels_are_stored_changes_nothing(axes: tuple[int, ...]) -> None:
    image, _ = body()
    stored, affine = np.flip(image, axes).copy(), AFFINE.copy()
    for axis in axes:
        column = 2 - axis
        affine[:3, 3] += affine[:3, column] * (image.shape[axis] - 1)
        affine[:3, column] *= -1
    one, other = coarse(image), coarse(stored, affine)
    assert one.grid.matches(other.grid)
    assert torch.allclose(one.values, other.values, atol=1e-5)


def test_parts_of_a_body_are_registered_and_thin_volumes_do_no_harm() -> None:
    image, organ = body()
    part = image[14:]
    affine = AFFINE.copy()
    affine[2, 3] += 14 * 4.0
    fixed, moving = coarse(part), coarse(image)
    found = register(fixed, moving)
    propagated_mask = found.propagated(on(moving, organ)).numpy() > 0.5
    assert dice(propagated_mask, on(fixed, organ[14:]).numpy() > 0.5) > 0.85
    thin = register(coarse(image[24:25]), moving)
    assert torch.isfinite(thin.places).all() and torch.isfinite(thin.error_mm).all()


def test_cells_of_other_sizes_are_refused_and_registration_is_cancelled() -> None:
    image, _ = body()
    volume = Volume(image, AFFINE)
    with pytest.raises(ValueError, match="one size"):
        register(coarse(image), CoarseVolume.of(volume, SCALE, cell_mm=8.0))

    def stop(phase: str, done: int, total: int) -> None:
        assert phase == "register" and done <= total
        if done >= 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        register(coarse(image), coarse(image), progress=stop)


def test_a_field_goes_on_evenly_and_moves_where_it_is_told() -> None:
    field = Field(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([3.0, 0.0, 0.0]), torch.zeros(3, 4, 4, 4))
    far = torch.tensor([10.0, -5.0, 2.0])[:, None, None, None]
    assert field.at(far).flatten().tolist() == [13.0, -10.0, 2.0]
