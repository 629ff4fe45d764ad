"""Regions that look like structures, found without labels: targets for self-supervised tasks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

AIR = 0.03
"""Regions darker than this (intensity in [0, 1]) are background, never a target."""


def supervoxels(
    image: np.ndarray,
    *,
    sigma: float,
    levels: int,
    offset: float,
    min_voxels: int = 80,
    max_share: float = 0.06,
) -> np.ndarray:
    """Label connected regions of similar intensity.

    A watershed of the gradient magnitude cuts the image (slices, rows, columns; in [0, 1]) into basins; basins
    whose mean falls into the same of ``levels`` grey levels (shifted by ``offset`` in [0, 1)) and that touch are
    one region. ``sigma`` is the smoothing before the gradient, in in-plane pixels. Returns uint16 (slices, rows,
    columns), 0 where no region between ``min_voxels`` and ``max_share`` of the volume was found.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (0.4 * sigma, sigma, sigma))
    gradient = ndimage.generic_gradient_magnitude(smooth, ndimage.sobel)
    basins = watershed(np.round(gradient * 200).astype(np.int32))
    means = np.bincount(basins.ravel(), smooth.ravel()) / np.maximum(1, np.bincount(basins.ravel()))
    grey = np.floor(means * levels + offset).astype(np.int32)
    grey[means < AIR] = -1
    return _regions(grey[basins], min_voxels, int(max_share * image.size))


def _regions(grey: np.ndarray, min_voxels: int, max_voxels: int) -> np.ndarray:
    regions = np.zeros(grey.shape, dtype=np.uint16)
    count = 0
    for level in np.unique(grey[grey >= 0]):
        found, _ = ndimage.label(grey == level)
        sizes = np.bincount(found.ravel())
        sizes[0] = 0
        keep = np.flatnonzero((sizes >= min_voxels) & (sizes <= max_voxels))[: 65535 - count]
        rename = np.zeros(len(sizes), dtype=np.uint16)
        rename[keep] = np.arange(count + 1, count + 1 + len(keep))
        regions = np.maximum(regions, rename[found])
        count += len(keep)
    return regions
