"""Episodes: seeded, in range, and with targets where the image has them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssmsam_research.training.augmentation import AugmentationConfig, crop_grid, recoloured, sample
from ssmsam_research.training.prompt_episodes import EpisodeConfig, Episodes

CONFIG = EpisodeConfig(pairs=2, targets=3, sides=(96,))
PLAIN = AugmentationConfig(scale=(1, 1.0001), rotation_deg=0, flip=0, flip_y=0, elastic=0)


def first_batches(packed, seed, count=4):
    stream = iter(Episodes(volumes=[packed], config=CONFIG, seed=seed))
    return [next(stream) for _ in range(count)]


def test_batches_have_the_promised_shapes_and_ranges(packed):
    for batch in first_batches(packed, seed=1):
        count = len(batch.query)
        assert batch.slices.shape == (4, 3, 96, 96)
        assert batch.target.shape == batch.support_mask.shape == (count, 1, 48, 48)
        assert batch.slices.min() >= 0 and batch.slices.max() <= 1
        assert batch.target.min() >= 0 and batch.target.max() <= 1
        assert ((batch.query // 2) == (batch.support // 2)).all()
        assert (batch.query != batch.support).all()
        assert (batch.distance_mm >= packed.info.slice_mm).all()


def test_a_target_asked_for_by_click_is_there_to_be_clicked(packed):
    for batch in first_batches(packed, seed=2, count=12):
        by_click = ~batch.by_neighbour
        assert (batch.target[by_click].amax((1, 2, 3)) > 0.5).all()
        assert (batch.support_mask[batch.by_neighbour].amax((1, 2, 3)) > 0.5).all()


def test_same_seed_same_episodes(packed):
    for mine, theirs in zip(first_batches(packed, 3), first_batches(packed, 3), strict=True):
        assert torch.equal(mine.slices, theirs.slices)
        assert torch.equal(mine.target, theirs.target)
    assert not torch.equal(first_batches(packed, 3)[0].slices, first_batches(packed, 4)[0].slices)


def test_image_and_mask_are_read_through_the_same_grid(packed):
    """Without deformation the crop is a plain shift of the image, to the pixel."""
    grid = crop_grid(np.random.default_rng(0), (139.5, 99.5), 64, 256, PLAIN)
    crop = sample(packed.image[5:6], grid)[0]
    np.testing.assert_allclose(crop, packed.image[5, 68:132, 108:172], atol=0.6)


def test_recolouring_keeps_range_and_structure(packed):
    rng = np.random.default_rng(0)
    images = packed.image[4:6].astype(np.float32) / 255
    config = AugmentationConfig(recolour=1.0, invert=0)
    for _ in range(5):
        changed = recoloured(images, packed.label[4:6].astype(np.int32), rng, config)
        assert changed.shape == images.shape
        assert changed.min() >= 0 and changed.max() <= 1
        ball = changed[packed.label[4:6] == 1]
        assert ball.std() < 0.2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_less_is_repainted_the_more_is_left_of_the_image(packed, seed):
    images = packed.image[4:6].astype(np.float32) / 255
    regions = packed.label[4:6].astype(np.int32)
    plain = AugmentationConfig(recolour=1.0, invert=0, shading=0, noise=0, blur=0, gamma=(1.0, 1.0))

    def likeness(share: float) -> float:
        config = replace(plain, recolour_share=(share, share))
        changed = recoloured(images, regions, np.random.default_rng(seed), config)
        return float(np.corrcoef(images.ravel(), changed.ravel())[0, 1])

    assert likeness(0.0) > 0.98
    assert likeness(0.0) > likeness(0.4) > likeness(0.95)


def test_no_volumes_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        Episodes(volumes=[], config=CONFIG, seed=0)
