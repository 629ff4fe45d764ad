"""A pack holds what the network will see, on the frame it will see it in."""

import numpy as np
import pytest

from ssmsam_research.training.pack import SIZE, load_pack, save_packed


def test_slices_fill_the_frame_and_labels_stay_on_the_image(packed):
    assert packed.image.shape == packed.label.shape == (12, SIZE, SIZE)
    assert packed.regions.shape == (2, 12, SIZE // 2, SIZE // 2)
    assert packed.info.slice_mm == 4.0
    assert packed.info.pixel_mm == pytest.approx(64 * 2.0 / SIZE)
    inside, outside = packed.image[packed.label == 1].mean(), packed.image[packed.label == 0].mean()
    assert inside > 200 > 80 > outside


def test_regions_follow_the_structures(packed):
    """Some region must overlap the labelled ball well: that is what self-supervision lives on."""
    ball = packed.label[:, ::2, ::2] == 1
    best = 0.0
    for regions in packed.regions:
        for name in np.unique(regions[ball])[1:]:
            region = regions == name
            best = max(best, 2 * (region & ball).sum() / (region.sum() + ball.sum()))
    assert best > 0.7


def test_a_pack_survives_the_disk(packed, tmp_path):
    save_packed(packed, tmp_path)
    (loaded,) = load_pack(tmp_path)
    assert loaded.info == packed.info
    for name in ("image", "label", "regions"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(packed, name))


def test_an_empty_folder_says_how_to_make_a_pack(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ssmsam train pack"):
        load_pack(tmp_path)
