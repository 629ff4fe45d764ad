"""Training data as the network will see it: slices drawn into the encoder's frame, in a few arrays per volume.

A pack is a folder of ``.npz`` files, written once where the readers are installed and read anywhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.segmentation import watershed

from ssmsam.files import whole_file
from ssmsam.models.frame import Frame
from ssmsam.volume.body import body_centres
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Volume

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


SIZE = 256
"""Side of a packed slice: the small encoder's input."""


@dataclass(frozen=True)
class PackedInfo:
    """What is known of a packed volume besides its pixels."""

    dataset: str
    name: str
    slice_mm: float
    """Between neighbouring slices."""
    pixel_mm: float
    """Of a pixel of the packed (square) slices."""
    labels: dict[str, int]
    """Organ label values that may be used as targets, by name."""


@dataclass(frozen=True, eq=False)
class PackedVolume:
    """``image`` uint8 and ``label`` uint8 (n, SIZE, SIZE); ``regions`` uint16 (maps, n, SIZE/2, SIZE/2)."""

    info: PackedInfo
    image: np.ndarray
    label: np.ndarray
    regions: np.ndarray

    @cached_property
    def body_centres(self) -> np.ndarray:
        """(n, 2): where the body's centre is on every slice, as (x, y) in pixels."""
        return body_centres(lambda index: self.image[index] / 255.0, len(self.image), self.info.slice_mm)


def pack_volume(
    image: Volume, label: Volume | None, *, scale: tuple[float, float], info: PackedInfo, seed: int
) -> PackedVolume:
    """Draw a volume into the frame. ``scale`` are the intensities that become 0 and 255."""
    plane = Plane()
    frame = frame_of(image, plane)
    pixels = draw_slices(image.array, frame, scale)
    labels = np.zeros_like(pixels) if label is None else draw_labels(label.array, frame)
    rng = np.random.default_rng(seed)
    half = pixels.reshape(len(pixels), SIZE // 2, 2, SIZE // 2, 2).mean((2, 4)) / 255.0
    maps = [
        supervoxels(half, sigma=sigma, levels=levels, offset=rng.random()) for sigma, levels in ((1.0, 14), (1.6, 9))
    ]
    return PackedVolume(info, pixels, labels, np.stack(maps))


def pack_info(image: Volume, *, dataset: str, name: str, labels: dict[str, int]) -> PackedInfo:
    """The description of a volume that is about to be packed."""
    plane = Plane()
    return PackedInfo(dataset, name, plane.slice_mm(image.grid), frame_of(image, plane).input_mm, labels)


def save_packed(packed: PackedVolume, folder: Path) -> Path:
    """Write one volume of a pack."""
    path = folder / f"{packed.info.dataset}-{packed.info.name}.npz"
    with whole_file(path, ".npz") as partial:
        np.savez_compressed(
            partial,
            image=packed.image,
            label=packed.label,
            regions=packed.regions,
            info=np.frombuffer(json.dumps(asdict(packed.info)).encode(), dtype=np.uint8),
        )
    return path


def load_pack(folder: Path) -> list[PackedVolume]:
    """All volumes of a pack, in the order of their file names. Raises FileNotFoundError for an empty folder."""
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"no packed volumes in {folder}: make them with `ssmsam train pack`")
    return [_load(path) for path in paths]


def _load(path: Path) -> PackedVolume:
    with np.load(path, allow_pickle=False) as arrays:
        info = PackedInfo(**json.loads(arrays["info"].tobytes()))
        return PackedVolume(info, arrays["image"], arrays["label"], arrays["regions"])


def frame_of(image: Volume, plane: Plane) -> Frame:
    """How the slices of a volume are drawn."""
    _, mirrored_y, mirrored_x = plane.mirrored(image.grid)
    return Frame(*plane.slice_shape(image.grid), SIZE, plane.pixel_mm(image.grid), (mirrored_y, mirrored_x))


def draw_slices(array: np.ndarray, frame: Frame, scale: tuple[float, float]) -> np.ndarray:
    """Slices (n, height, width) -> uint8 (n, SIZE, SIZE)."""
    low, high = scale
    drawn = np.empty((len(array), SIZE, SIZE), dtype=np.uint8)
    for index, pixels in enumerate(array):
        unit = torch.from_numpy(np.clip((pixels.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1))
        drawn[index] = (frame.to_input(unit[None, None])[0, 0] * 255).round().byte().numpy()
    return drawn


def draw_labels(array: np.ndarray, frame: Frame) -> np.ndarray:
    """Label numbers (n, height, width) -> uint8 (n, SIZE, SIZE)."""
    rows, columns = frame.resized
    drawn = np.zeros((len(array), SIZE, SIZE), dtype=np.uint8)
    for index, values in enumerate(array):
        nearest = F.interpolate(
            torch.from_numpy(values.astype(np.float32))[None, None], (rows, columns), mode="nearest-exact"
        )
        drawn[index, :rows, :columns] = frame.mirror(nearest)[0, 0].byte().numpy()
    return drawn
