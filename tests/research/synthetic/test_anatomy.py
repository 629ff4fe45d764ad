from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ssmsam_research.synthetic.anatomy import LABELS, Tissue, draw_anatomy, labels_of
from ssmsam_research.synthetic.rendering import Scan, render_ct, render_mr
from ssmsam_research.synthetic.shapes import smooth_field

SHAPE, SPACING = (32, 88, 88), (7.5, 4.0, 4.0)
SEEDS = range(4)

PLAUSIBLE_ML = {
    "liver": (600, 2000),
    "spleen": (60, 400),
    "right kidney": (40, 250),
    "left kidney": (40, 250),
    "aorta": (30, 160),
    "lesion": (1, 40),
}


@pytest.fixture(scope="module", params=SEEDS)
def tissue(request: pytest.FixtureRequest) -> np.ndarray:
    return draw_anatomy(request.param, shape=SHAPE, spacing_mm=SPACING)


def centre_mm(mask: np.ndarray) -> np.ndarray:
    """(x to the left, y to posterior, z to superior) of the mask's middle, from the middle of the grid."""
    zyx = (np.argwhere(mask).mean(axis=0) - (np.array(SHAPE) - 1) / 2) * SPACING
    return zyx[::-1]


def test_every_organ_has_a_plausible_volume(tissue: np.ndarray) -> None:
    labels = labels_of(tissue)
    for name, (low, high) in PLAUSIBLE_ML.items():
        millilitres = (labels == LABELS[name]).sum() * np.prod(SPACING) / 1000
        assert low <= millilitres <= high, name


def test_organs_lie_where_they_do_in_people(tissue: np.ndarray) -> None:
    labels = labels_of(tissue)
    middle = {name: centre_mm(labels == value) for name, value in LABELS.items()}
    assert middle["liver"][0] < -30 < 30 < middle["spleen"][0]
    assert middle["right kidney"][0] < -40 < 40 < middle["left kidney"][0]
    assert -15 < middle["aorta"][0] < 40
    assert middle["right kidney"][2] < middle["liver"][2]
    assert middle["left kidney"][2] < middle["spleen"][2]
    assert middle["spleen"][1] > middle["liver"][1]
    spine = centre_mm(tissue == Tissue.CORD)
    assert spine[1] > middle["aorta"][1]


def test_labels_lie_under_the_skin_and_end_inside_the_image(tissue: np.ndarray) -> None:
    labels = labels_of(tissue)
    outside = np.isin(tissue, [Tissue.OUTSIDE, Tissue.TABLE])
    near_skin = ndimage.binary_dilation(outside, np.ones((1, 3, 3)))
    assert not (near_skin & (labels > 0)).any()
    for name in ("liver", "spleen", "right kidney", "left kidney", "lesion"):
        assert not (labels[[0, -1]] == LABELS[name]).any(), name


def test_organs_are_one_piece(tissue: np.ndarray) -> None:
    labels = labels_of(tissue)
    for name in ("liver", "spleen", "right kidney", "left kidney", "aorta"):
        mask = (labels == LABELS[name]) | ((labels == LABELS["lesion"]) & (name == "liver"))
        parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        assert np.bincount(parts[mask]).max() > 0.93 * mask.sum(), name


def test_the_lesion_lies_in_the_liver(tissue: np.ndarray) -> None:
    labels = labels_of(tissue)
    lesion = labels == LABELS["lesion"]
    around = ndimage.binary_dilation(lesion) & ~lesion
    assert (labels[around] == LABELS["liver"]).mean() > 0.8


def test_organs_grow_and_shrink_gradually_along_the_slices(tissue: np.ndarray) -> None:
    area = (labels_of(tissue) == LABELS["liver"]).sum(axis=(1, 2))
    assert np.abs(np.diff(area)).max() < 0.5 * area.max()


def test_the_same_seed_is_the_same_patient_and_another_is_not() -> None:
    one, again, other = (draw_anatomy(seed, shape=(10, 40, 40), spacing_mm=(20.0, 8.0, 8.0)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.1


def test_a_finer_grid_shows_the_same_patient() -> None:
    fine = labels_of(draw_anatomy(3, shape=(48, 132, 132), spacing_mm=(5.0, 8 / 3, 8 / 3)))
    coarse = labels_of(draw_anatomy(3, shape=(16, 44, 44), spacing_mm=(15.0, 8.0, 8.0)))
    there = fine[1::3, 1::3, 1::3]
    for name in ("liver", "spleen", "left kidney"):
        one, other = coarse == LABELS[name], there == LABELS[name]
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.95, name


def test_ct_shows_hounsfield_units(tissue: np.ndarray) -> None:
    image = render_ct(tissue, seed=5, scan=Scan(SPACING))
    assert image.dtype == np.int16
    ranges = {
        Tissue.OUTSIDE: (-1024, -960), Tissue.LIVER: (80, 130), Tissue.SPLEEN: (95, 150),
        Tissue.RIGHT_CORTEX: (130, 200), Tissue.AORTA: (110, 175),
        Tissue.MUSCLE: (20, 85), Tissue.LUNG: (-950, -700), Tissue.FAT: (-120, -60),
    }  # fmt: skip
    for kind, (low, high) in ranges.items():
        assert low <= np.median(image[tissue == kind]) <= high, kind.name


def test_noise_and_texture_make_organs_uneven(tissue: np.ndarray) -> None:
    image = render_ct(tissue, seed=5, scan=Scan(SPACING)).astype(float)
    inner = ndimage.binary_erosion(tissue == Tissue.LIVER, iterations=2)
    assert 6 < image[inner].std() < 40


def test_mr_contrasts_differ_as_they_should(tissue: np.ndarray) -> None:
    t2, t1 = (render_mr(tissue, seed=5, scan=Scan(SPACING), contrast=contrast) for contrast in ("T2", "T1"))
    assert t2.dtype == t1.dtype == np.int16
    assert min(t2.min(), t1.min()) >= 0

    def ratio(image: np.ndarray, one: Tissue, other: Tissue) -> float:
        return float(np.median(image[tissue == one]) / np.median(image[tissue == other]))

    assert ratio(t2, Tissue.SPLEEN, Tissue.LIVER) > 1.3 > 0.9 > ratio(t1, Tissue.SPLEEN, Tissue.LIVER)
    assert ratio(t1, Tissue.FAT, Tissue.MUSCLE) > 1.5 > 1 > ratio(t2, Tissue.FAT, Tissue.MUSCLE)
    with pytest.raises(ValueError, match="contrast"):
        render_mr(tissue, seed=5, scan=Scan(SPACING), contrast="T3")


def test_mr_brightness_drifts_across_the_body() -> None:
    tissue = np.full((12, 60, 60), Tissue.MUSCLE, np.uint8)
    image = render_mr(tissue, seed=1, scan=Scan((10.0, 6.0, 6.0))).astype(float)
    smooth = ndimage.uniform_filter(image, 9)
    assert smooth.std() / smooth.mean() > 0.05


def test_merged_voxels_mix_the_tissues_they_cover() -> None:
    tissue = np.full((8, 40, 40), Tissue.OUTSIDE, np.uint8)
    tissue[:, 11:] = Tissue.LIVER  # odd: one merged row is half air, half liver
    image = render_ct(tissue, seed=1, scan=Scan((2.0, 1.0, 1.0), (2, 2, 2)))
    assert image.shape == (4, 20, 20)
    assert -750 < image[:, 5].mean() < -150
    assert image[:, 9:].mean() > 60


def test_a_field_is_the_same_on_a_finer_grid() -> None:
    coarse = smooth_field(np.random.default_rng(4), (10, 12, 14), (6.0, 6.0, 6.0), 25)
    fine = smooth_field(np.random.default_rng(4), (30, 36, 42), (2.0, 2.0, 2.0), 25)
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-5)


def test_a_field_is_smooth_and_of_unit_spread() -> None:
    field = smooth_field(np.random.default_rng(5), (60, 60, 60), (2.0, 2.0, 2.0), 12)
    assert abs(field.mean()) < 0.25
    assert field.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, axis=1)).mean() < 0.25
