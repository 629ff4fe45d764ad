"""A tiny training pack: bright balls and dark boxes, labelled."""

import numpy as np
import pytest

from ssmsam.volume.volume import Volume
from ssmsam_research.training.pack import PackedVolume, pack_info, pack_volume


@pytest.fixture(scope="session")
def packed() -> PackedVolume:
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(np.arange(12), np.arange(64), np.arange(64), indexing="ij")
    body = (x - 32) ** 2 + (y - 32) ** 2 < 29**2
    ball = (3 * (z - 6)) ** 2 + (y - 24) ** 2 + (x - 40) ** 2 < 11**2
    tube = (y - 44) ** 2 + (x - 22) ** 2 < 5**2
    image = 40.0 * body + 100 * ball + 60 * tube + rng.normal(0, 4, z.shape)
    label = (ball + 2 * (tube & ~ball)).astype(np.uint8)
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    info = pack_info(Volume(image, affine), dataset="toy", name="one", labels={"ball": 1, "tube": 2})
    return pack_volume(Volume(image, affine), Volume(label, affine), scale=(0, 160), info=info, seed=0)
