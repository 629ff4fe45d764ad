"""What a list of studies shows of each image: its state, its annotated labels, and a small picture."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.images import Images, OpenImage
from ssmsam.volume.intensity import CtWindow

PICTURE_PIXELS = 128
"""The longer side of a thumbnail: a guess at what a row of a list needs, on a dense screen too."""


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One image as a list shows it."""

    image: str
    state: str
    """``new``, ``in work``, ``finished`` or ``unreadable``."""
    reason: str = ""
    """Why it cannot be read."""
    labels: Mapping[str, int]
    """Label -> number of annotated slices."""


def study_list(studies: AnnotatedStudies, images: Images) -> list[StudySummary]:
    """Every image, by name. No image is opened: one that nobody tried to read yet may turn out unreadable."""
    aside = {one["image"]: str(one["reason"]) for one in images.set_aside()}
    finished = set(studies.get_labeled_images())
    annotated: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in studies.support().slices:
        annotated[one.image][one.label] += 1

    def state(image: str) -> str:
        if image in aside:
            return "unreadable"
        return "finished" if image in finished else "in work" if image in annotated else "new"

    return [
        StudySummary(image=image, state=state(image), reason=aside.get(image, ""), labels=annotated.get(image, {}))
        for image in sorted(studies.files.list_images())
    ]


def modality(image: OpenImage) -> str:
    """CT, MR or what the file says; where it says nothing, as its intensities were taken."""
    return image.volume.modality or ("CT" if isinstance(image.embeddings.recipe, CtWindow) else "MR")


def thumbnail(image: OpenImage) -> bytes:
    """The middle slice as PNG, as the encoder sees its intensities, head or front up."""
    plane, volume = image.embeddings.plane, image.volume
    pixels = plane.stack(volume.array)[image.embeddings.count // 2]
    _, rows, columns = plane.mirrored(volume.grid)
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    grey = (255 * image.embeddings.recipe.scale(volume).apply(pixels)).astype(np.uint8)
    height, width = (side * mm for side, mm in zip(grey.shape, plane.pixel_mm(volume.grid), strict=True))
    scale = PICTURE_PIXELS / max(height, width)
    picture = Image.fromarray(grey).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
