"""Random geometry and contrast for pairs of slices of one volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges of the random changes; probabilities in [0, 1]."""

    scale: tuple[float, float] = (0.75, 1.45)
    """Enlargement of the image on the crop."""
    rotation_deg: float = 20.0
    flip: float = 0.3
    flip_y: float = 0.1
    elastic: float = 0.3
    elastic_pixels: float = 6.0
    gamma: tuple[float, float] = (0.6, 1.6)
    invert: float = 0.12
    recolour: float = 0.3
    """Chance that regions get random new brightnesses: the same anatomy in a contrast no scanner made,"""
    recolour_share: tuple[float, float] = (0.3, 0.9)
    """by so much, from not at all to nothing left of what was there."""
    shading: float = 0.4
    """Chance that brightness varies smoothly over the slices, as with the coils of a magnetic resonance scanner,"""
    shading_spread: float = 0.25
    """by so much, as the standard deviation of its logarithm."""
    noise: float = 0.04
    blur: float = 0.2


def crop_grid(
    rng: np.random.Generator, centre_xy: tuple[float, float], side: int, size: int, config: AugmentationConfig
) -> torch.Tensor:
    """A sampling grid (1, side, side, 2) for grid_sample: crop of a (size, size) image around a point, deformed."""
    scale = np.exp(rng.uniform(*np.log(config.scale)))
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    flip = -1.0 if rng.random() < config.flip else 1.0
    steps = (np.arange(side) - (side - 1) / 2) / scale
    y, x = np.meshgrid(steps, steps, indexing="ij")
    x = x * flip
    y = y * (-1.0 if rng.random() < config.flip_y else 1.0)
    grid = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=-1)
    grid += centre_xy
    if rng.random() < config.elastic:
        bend = rng.normal(0, config.elastic_pixels, (1, 2, 5, 5)).astype(np.float32)
        smooth = F.interpolate(torch.from_numpy(bend), (side, side), mode="bicubic", align_corners=True)
        grid += smooth[0].permute(1, 2, 0).numpy()
    return torch.from_numpy((2 * grid + 1) / size - 1).float()[None]


def sample(channels: np.ndarray, grid: torch.Tensor, *, nearest: bool = False) -> np.ndarray:
    """Read (C, size, size) through a grid of :func:`crop_grid` -> (C, side, side) float32, 0 outside."""
    images = torch.from_numpy(channels.astype(np.float32))[None]
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)[0].numpy()


def recoloured(
    images: np.ndarray, regions: np.ndarray, rng: np.random.Generator, config: AugmentationConfig
) -> np.ndarray:
    """One random contrast for all channels (C, side, side) in [0, 1]; ``regions`` (C, side, side) are whole numbers."""
    images = images.copy()
    if rng.random() < config.recolour:
        names, where = np.unique(regions, return_inverse=True)
        means = rng.uniform(0.05, 0.95, len(names))
        means[names == 0] = 0.0
        paint = ndimage.gaussian_filter(means[where].reshape(regions.shape), (0, 0.8, 0.8))
        share = rng.uniform(*config.recolour_share) * (regions > 0)
        images = (1 - share) * images + share * paint
    images = np.clip(images, 0, 1) ** rng.uniform(*config.gamma)
    if rng.random() < config.shading:
        images = images * _shading(rng, images.shape[-1], config.shading_spread)
    images = images * rng.uniform(0.7, 1.25) + rng.uniform(-0.1, 0.1)
    if rng.random() < config.invert:
        images = 1 - images
    if rng.random() < config.blur:
        images = ndimage.gaussian_filter(images, (0, *2 * [rng.uniform(0.4, 1.2)]))
    images = images + rng.normal(0, rng.uniform(0, config.noise), images.shape)
    return np.clip(images, 0, 1).astype(np.float32)


def _shading(rng: np.random.Generator, side: int, spread: float) -> np.ndarray:
    """A smooth field of factors (side, side)."""
    coarse = torch.from_numpy(rng.normal(0, spread, (1, 1, 4, 4)).astype(np.float32))
    field: np.ndarray = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0, 0].exp().numpy()
    return field
