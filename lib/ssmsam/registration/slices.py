"""Registration of neighbouring slices: what was drawn on one slice is carried to others along the anatomy.

Between two annotated slices a shape moves as the image does. Slices side by side are registered in both directions by
symmetric demons (Vercauteren et al., 2009, as in SimpleITK), and what lies between is reached step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from ssmsam.cache import Cache

SIDE = 64
"""Cells across of displacements as they are kept; slices are registered with twice as many."""
ITERATIONS = 10
"""Of demons, at half the size and at the full one: *chosen on* held-out training volumes, where 30 were not better."""
SMOOTHNESS = 1.0
"""Standard deviation in cells of the Gaussian that smooths displacements: *chosen on* the same volumes. With 1.5 and 3
masks of small organs were carried less well, and by optical flow."""
_KEPT_BYTES = 4 * 2**20
"""Bound of what is remembered of paths through one volume: a *guess*."""


def both_ways(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Register two slices (2 SIDE, 2 SIDE) with each other.

    Returns:
        (2, SIDE, SIDE, 2) float16: where each cell of the upper slice is in the lower one, and each of the lower in the
        upper, less its own place; (x, y) in cells.
    """
    return np.stack([_displacement(upper, lower), _displacement(lower, upper)])


def _displacement(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(ITERATIONS)
    demons.SetStandardDeviations(SMOOTHNESS)
    demons.SetNumberOfThreads(torch.get_num_threads())
    spread = float(np.std([fixed, moving])) or 1.0
    large = [sitk.GetImageFromArray((one / spread).astype(np.float32)) for one in (fixed, moving)]
    small = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(one, 1.0), [2, 2]) for one in large]
    coarse = demons.Execute(*small)
    start = sitk.Resample(coarse, large[0], sitk.Transform(), sitk.sitkLinear, 0.0, coarse.GetPixelID())
    found = sitk.GetArrayFromImage(demons.Execute(*large, start))
    cells = found.reshape(SIDE, 2, SIDE, 2, 2).mean(axis=(1, 3)) / 2
    return cells.astype(np.float16)


@dataclass(frozen=True, eq=False)
class SliceMotion:
    """How the anatomy moves along one volume.

    ``positions`` (m,) in mm, ascending, of the slices that were registered; ``steps`` (m - 1, 2, SIDE, SIDE, 2) what
    :func:`both_ways` says of each pair.
    """

    positions: np.ndarray
    steps: np.ndarray
    _paths: Cache[tuple[int, int], torch.Tensor] = field(
        default_factory=lambda: Cache(_KEPT_BYTES, size=lambda path: path.nbytes), repr=False
    )

    def carried(self, maps: np.ndarray, start: float, stop: float) -> np.ndarray:
        """Maps (C, S, S) of the slice at ``start`` as they would be at ``stop``, both in mm; float32."""
        first, last = (float(np.interp(mm, self.positions, np.arange(len(self.positions)))) for mm in (start, stop))
        if round(first) == last or not len(self.steps):
            return maps.astype(np.float32)
        path = self._path(round(first), last)
        side = maps.shape[-1]
        grid = F.interpolate(path, (side, side), mode="bilinear", align_corners=False) * (2 / SIDE)
        return _sampled(torch.from_numpy(maps.astype(np.float32))[None], grid)[0].numpy()

    def _path(self, first: int, last: float) -> torch.Tensor:
        """(1, 2, SIDE, SIDE): from each cell at ``last`` back to ``first``."""
        upwards = last > first
        whole = int(np.floor(last) if upwards else np.ceil(last))
        path = self._whole_path(first, whole)
        if whole == last:
            return path
        return _joined(self._step(whole, upwards) * abs(last - whole), path)

    def _whole_path(self, first: int, last: int) -> torch.Tensor:
        if first == last:
            return torch.zeros(1, 2, SIDE, SIDE)

        def longer() -> torch.Tensor:
            upwards = last > first
            before = last - 1 if upwards else last + 1
            return _joined(self._step(before, upwards), self._whole_path(first, before))

        return self._paths.recalled((first, last), longer)

    def _step(self, number: int, upwards: bool) -> torch.Tensor:
        """(1, 2, SIDE, SIDE): from the next slice above or below back to slice ``number``."""
        step = self.steps[number, 0] if upwards else self.steps[number - 1, 1]
        return torch.from_numpy(step.astype(np.float32)).permute(2, 0, 1)[None]


def _joined(step: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """A ``step`` and then the ``path`` on from where it leads."""
    return step + _sampled(path, step * (2 / SIDE))


def _sampled(maps: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Maps (1, C, S, S) at each cell's place plus ``moved`` (1, 2, S, S), in units in which the image is 2 wide."""
    side = maps.shape[-1]
    centres = (torch.arange(side) * 2 + 1) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    grid = torch.stack([x, y], dim=-1)[None] + moved.permute(0, 2, 3, 1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
