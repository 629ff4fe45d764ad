from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssmsam.reading import read_volume
from ssmsam.volume.intensity import CtWindow, MrPercentiles, Scale, guess_modality, recipe_for
from ssmsam.volume.volume import Volume

RNG = np.random.default_rng(3)


def volume_of(array: np.ndarray, modality: str = "") -> Volume:
    return Volume(array, np.eye(4), modality)


def ct_like(shape: tuple[int, int, int] = (6, 40, 40)) -> np.ndarray:
    """Half air or fat, half soft tissue, in HU."""
    array = RNG.normal(60, 30, shape)
    array[:, :20] = RNG.choice([-1000.0, -100.0], (shape[0], 20, shape[2]))
    return array.astype(np.int16)


any_values = arrays.arrays(
    st.sampled_from([np.float32, np.int32, np.int16, np.uint8]), arrays.array_shapes(min_dims=3, max_dims=3)
)


@given(any_values)
def test_every_image_becomes_finite_numbers_from_0_to_1(array: np.ndarray) -> None:
    for recipe in (CtWindow(), MrPercentiles()):
        with np.errstate(over="ignore", invalid="ignore"):
            drawn = recipe.scale(volume_of(array)).apply(array)
        assert drawn.dtype == np.float32
        assert drawn.shape == array.shape
        assert ((drawn >= 0) & (drawn <= 1)).all()


def test_the_window_maps_its_ends_and_middle() -> None:
    scale = CtWindow(-100, 300).scale(volume_of(ct_like()))
    np.testing.assert_allclose(scale.apply(np.array([-1000, -100, 100, 300, 3000])), [0, 0, 0.5, 1, 1])


def test_unsigned_input_does_not_wrap_round() -> None:
    np.testing.assert_allclose(Scale(100, 200).apply(np.array([0, 100, 150, 255], np.uint8)), [0, 0, 0.5, 1])


def test_percentiles_are_of_the_whole_volume_not_of_a_slice() -> None:
    array = np.stack([np.full((10, 10), 100.0 * k) for k in range(11)])
    drawn = MrPercentiles(0, 100).scale(volume_of(array)).apply(array)
    np.testing.assert_allclose(drawn[:, 0, 0], np.linspace(0, 1, 11), atol=1e-6)


def test_percentiles_cut_the_extremes() -> None:
    array = np.arange(10_001, dtype=np.float32).reshape(1, 1, -1)
    scale = MrPercentiles(1, 90).scale(volume_of(array))
    assert (scale.low, scale.high) == (100, 9000)


def test_large_volumes_give_nearly_the_percentiles_of_all_voxels() -> None:
    columns = np.linspace(0, 1, 512, dtype=np.float32) ** 2  # bright and dark columns: a stride of 2**n would miss some
    array = np.broadcast_to(columns, (20, 512, 512)) * 1000
    scale = MrPercentiles().scale(volume_of(array))
    exact = np.percentile(array, [0.5, 99.5])
    np.testing.assert_allclose([scale.low, scale.high], exact, atol=2)
    assert scale == MrPercentiles().scale(volume_of(array.copy()))


@pytest.mark.parametrize("value", [0, -7, 1000])
def test_a_constant_volume_divides_by_nothing(value: int) -> None:
    array = np.full((2, 3, 4), value, np.int16)
    assert not MrPercentiles().scale(volume_of(array)).apply(array).any()


def test_a_small_thing_on_an_even_background_is_still_seen() -> None:
    array = np.zeros((10, 50, 50), np.float32)
    array[5, 20:22, 20:22] = 80
    drawn = MrPercentiles().scale(volume_of(array)).apply(array)
    assert drawn[5, 20, 20] == 1
    assert drawn.sum() == 4


def test_not_a_number_is_black_and_changes_no_scale() -> None:
    array = RNG.uniform(0, 100, (4, 20, 20)).astype(np.float32)
    holes = array.copy()
    holes[0] = np.nan
    scale = MrPercentiles().scale(volume_of(holes))
    assert scale == MrPercentiles().scale(volume_of(array[1:]))
    assert not scale.apply(holes)[0].any()
    np.testing.assert_array_equal(scale.apply(np.array([np.inf, -np.inf])), [1, 0])
    assert MrPercentiles().scale(volume_of(np.full((1, 2, 2), np.nan))) == Scale(0, 1)


def test_digest_tells_recipes_and_parameters_apart() -> None:
    recipes = [CtWindow(), CtWindow(-160, 241), MrPercentiles(), MrPercentiles(0.5, 99)]
    assert len({recipe.digest for recipe in recipes}) == 4
    assert CtWindow().digest == CtWindow(-160.0, 240.0).digest
    assert len(CtWindow().digest) == 64


@pytest.mark.parametrize(("low", "high"), [(-1, 99), (50, 50), (1, 101), (90, 10)])
def test_impossible_percentiles_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="percentiles"):
        MrPercentiles(low, high)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, np.inf), (np.nan, 1)])
def test_impossible_scales_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        Scale(low, high)


def test_hounsfield_units_are_recognised() -> None:
    assert guess_modality(volume_of(ct_like())) == "CT"
    assert guess_modality(volume_of(np.clip(ct_like(), -125, 275))) == "CT"


@pytest.mark.parametrize(
    "array",
    [
        np.abs(RNG.normal(300, 200, (5, 30, 30))),
        RNG.integers(0, 256, (5, 30, 30)).astype(np.uint8),
        RNG.normal(0, 1, (5, 30, 30)),
        RNG.uniform(-4096, 4095, (5, 30, 30)),
        np.zeros((2, 2, 2)),
        np.full((2, 2, 2), np.nan),
    ],
    ids=["MR", "8-bit", "normalised", "phase", "empty", "not a number"],
)
def test_other_values_are_not_taken_for_hounsfield_units(array: np.ndarray) -> None:
    assert guess_modality(volume_of(array)) == "MR"


def test_what_the_file_says_goes_before_the_guess() -> None:
    assert recipe_for(volume_of(ct_like())) == CtWindow()
    assert recipe_for(volume_of(ct_like(), "MR")) == MrPercentiles()
    assert recipe_for(volume_of(np.abs(ct_like()), "CT")) == CtWindow()
    assert recipe_for(volume_of(ct_like(), "PT")) == MrPercentiles()


def test_intensities_near_four_billion_keep_their_steps(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 1000, (4, 6, 8)).astype(np.uint32)
    grey = {}
    for name, array in {"small": small, "large": small + np.uint32(4_000_000_000)}.items():
        nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / f"{name}.nii.gz")
        volume = read_volume(tmp_path / f"{name}.nii.gz")
        grey[name] = recipe_for(volume).scale(volume).apply(volume.array)
    np.testing.assert_allclose(grey["large"], grey["small"], atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_numbers_as_far_apart_as_float32_goes_are_scaled() -> None:
    array = np.array([-3e38, 0, 3e38], np.float32)
    np.testing.assert_allclose(Scale(-3e38, 3e38).apply(array), [0, 0.5, 1])
