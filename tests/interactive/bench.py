"""A volume with three bright bodies, and a bench to try prompts on it."""

from __future__ import annotations

import numpy as np

from fakes import SIZE, PixelEncoder, RegionDecoder
from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.request import PromptRequest
from ssmsam.interactive.session import SegmentationResult, SegmentationState, segment_2d, segment_3d
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.intensity import MrPercentiles
from ssmsam.volume.volume import Volume

SLICES = 20
SPACING = (5.0, 1.5, 1.5)


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """(slices, rows, columns) bool."""
    zyx = np.indices((SLICES, SIZE, SIZE))
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(zyx, centre, radii, strict=True)) <= 1


ORGAN = ellipsoid((9, 30, 20), (6, 14, 11))
OTHER = ellipsoid((11, 34, 50), (5, 9, 8))
SATELLITE = ellipsoid((9, 8, 20), (3, 4, 4))
"""As bright as the organ, beside it, not touching it."""


def draw_volume() -> Volume:
    array = np.full((SLICES, SIZE, SIZE), 100.0)
    array[OTHER] = 300
    array[ORGAN | SATELLITE] = 500
    array += np.random.default_rng(0).normal(0, 4, array.shape)
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])
    affine[:3, 3] = -40, -30, 120
    return Volume(array=array, affine=affine, modality="MR")


class Bench:
    """One volume with its embeddings, a decoder, and a shorthand for requests."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.embedder = Embedder(encoder=PixelEncoder())
        self.embeddings = self.embedder.open(volume, recipe=MrPercentiles())
        self.decoder = RegionDecoder()

    def parse(self, dimension: int, **params: object) -> PromptRequest:
        return read_prompts({"label": "organ", **params}, grid=self.volume.grid, dimension=dimension)

    def two(self, state: SegmentationState, **params: object) -> SegmentationResult:
        return segment_2d(self.parse(2, **params), self.embeddings, self.decoder, state)

    def three(self, state: SegmentationState, **params: object) -> SegmentationResult:
        return segment_3d(self.parse(3, **params), self.embeddings, self.decoder, state)
