"""What a list of studies shows of each image: its state, its annotated labels, and a small picture."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssmsam.annotation.log import WorkSummary
from ssmsam.reading import read_grid, read_slice
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import Images, OpenImage, Source
from ssmsam.volume.errors import named
from ssmsam.volume.geometry import Plane, axis_codes
from ssmsam.volume.intensity import CtWindow, IntensityRecipe, guess_modality, recipe_for
from ssmsam.volume.volume import Grid, Volume

PICTURE_PIXELS = 128
"""The longer side of a thumbnail: a guess at what a row of a list needs, on a dense screen too."""


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One image as a list shows it."""

    image: str
    state: str
    """``new``, ``in work``, ``to review``, ``finished`` or ``unreadable``."""
    reason: str = ""
    """Why it cannot be read."""
    labels: Mapping[str, int]
    """Label -> number of annotated slices."""
    work: WorkSummary


def study_list(studies: AnnotatedStudies, images: Images) -> list[StudySummary]:
    """Every image, by name. No image is opened: one that nobody tried to read yet may turn out unreadable."""
    aside = {one["image"]: str(one["reason"]) for one in images.set_aside()}
    states = studies.states()
    annotated: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in studies.support().slices:
        annotated[one.image][one.label] += 1
    return [
        StudySummary(
            image=image,
            state="unreadable" if image in aside else states[image],
            reason=aside.get(image, ""),
            labels=annotated.get(image, {}),
            work=studies.work(image),
        )
        for image in sorted(states)
    ]


def modality(image: OpenImage) -> str:
    """CT, MR or what the file says; where it says nothing, as its intensities were taken."""
    return image.volume.modality or ("CT" if isinstance(image.embeddings.recipe, CtWindow) else "MR")


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One stored slice of an image, without the others."""

    pixels: np.ndarray
    """(rows, columns)."""
    index: int
    grid: Grid
    """Of the whole image."""
    modality: str
    """CT, MR or what the file says; where it says nothing, what the intensities look like."""
    recipe: IntensityRecipe

    @property
    def towards(self) -> tuple[str, str]:
        """The sides of the patient to which rows and columns grow, as in ("P", "L")."""
        codes = axis_codes(self.grid)
        return codes[1], codes[0]

    @property
    def grey(self) -> np.ndarray:
        """(rows, columns) uint8 in the window of its recipe."""
        scale = self.recipe.scale(Volume(self.pixels[None], self.grid.affine))
        return (255 * scale.apply(self.pixels)).astype(np.uint8)

    def picture(self) -> bytes:
        """PNG, a pixel for a voxel, in stored order."""
        return _png(Image.fromarray(self.grey))

    def thumbnail(self) -> bytes:
        """PNG of at most :data:`PICTURE_PIXELS`, head or front up."""
        plane = Plane(0)
        _, rows, columns = plane.mirrored(self.grid)
        grey = self.grey[:: 1 if rows else -1, :: -1 if columns else 1]  # encoders see the front below
        height, width = (side * mm for side, mm in zip(grey.shape, plane.pixel_mm(self.grid), strict=True))
        scale = PICTURE_PIXELS / max(height, width)
        return _png(Image.fromarray(grey).resize((max(1, round(width * scale)), max(1, round(height * scale)))))


def look(images: Images, source: Source, index: int | None = None) -> Look:
    """A slice, the middle one unless told, of an image that may not be open: no more of its file is read than it takes.

    Raises InvalidRequest for a slice that it has not, and UnreadableVolume, whose message names no path.
    """
    opened = images.opened(source)
    if opened is not None:
        grid, recipe = opened.volume.grid, opened.embeddings.recipe
        index = _existing(index, grid)
        return Look(pixels=opened.volume.array[index], index=index, grid=grid, modality=modality(opened), recipe=recipe)
    with images.reading(source.image_id), named(source.path, source.name):
        grid = read_grid(source.path)
        index = _existing(index, grid)
        pixels, says = read_slice(source.path, index)
        alone = Volume(pixels[None], grid.affine, says)
        return Look(
            pixels=pixels, index=index, grid=grid, modality=says or guess_modality(alone), recipe=recipe_for(alone)
        )


def _existing(index: int | None, grid: Grid) -> int:
    count = grid.shape[0]
    if index is not None and index >= count:
        raise InvalidRequest(f"there is no slice {index}: this image has slices 0 to {count - 1}")
    return count // 2 if index is None else index


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
