"""From what is annotated in the datastore to the support that few-shot methods learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ssmsam.annotation.annotations import OtherImage, SupportSlice
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.support import LabelledSlice, Support
from ssmsam.ops import evenly_spaced
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import UNUSABLE, Images
from ssmsam.volume.geometry import Plane

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How many slices of a label are learned from: adaptation takes time with every slice."""

    own: int = 24
    others: int = 24


class LabelledSlices:
    """The annotated slices of all images, opened."""

    def __init__(self, *, images: Images, embedder: Embedder, studies: AnnotatedStudies) -> None:
        self._images = images
        self._embedder = embedder
        self._studies = studies

    def support(
        self, image_id: str, *, labels: Collection[str] = (), only_this: bool = False, limits: Limits | None = None
    ) -> Support:
        """Label -> slices: those of ``image_id`` and, unless ``only_this``, those of other images.

        Labels that are annotated on no slice that shows them are left out, and so are other images that cannot be
        read. Raises InvalidRequest for ``labels`` that are not annotated anywhere, and where no image that shows one
        of them can be read.
        """
        limits = limits or Limits()
        known = self._studies.support()
        if only_this:
            known = known.only(images=[image_id])
        wanted = [label for label in known.labels if len(known.only(label=label, nonempty=True))]
        missing = sorted(set(labels) - set(wanted))
        if missing:
            annotated = ", ".join(wanted) or "none yet"
            raise InvalidRequest(
                f"no annotated slice shows {', '.join(missing)}; annotated labels: {annotated}. "
                "Annotate a few slices of it, submit them, and run again"
            )
        opened: dict[tuple[str, Plane], VolumeEmbeddings] = {}
        found = {}
        for label in wanted:
            if not labels or label in labels:
                everything = known.only(label=label)
                own = [one for one in everything if one.image == image_id]
                others = [one for one in everything if one.image != image_id]
                chosen = _spread(own, limits.own) + _spread(others, limits.others)
                slices = self._opened(chosen, image_id, opened)
                if any(one.mask.any() for one in slices):
                    found[label] = slices
        if labels and not found:
            raise InvalidRequest(
                f"the images that show {', '.join(sorted(labels))} cannot be read; GET /info/ says why. "
                "Annotate a few slices of it in another image, submit them, and run again"
            )
        return found

    def these(self, slices: Mapping[str, Iterable[Mapping[str, object]]]) -> Support:
        """Label -> the slices that a card lists, as they are annotated now; without those that cannot be opened."""
        known = self._studies.support()
        opened: dict[tuple[str, Plane], VolumeEmbeddings] = {}
        found = {}
        for label, several in slices.items():
            wanted = {(one.get("image"), one.get("axis"), one.get("slice")) for one in several}
            chosen = [one for one in known.only(label=label) if (one.image, one.plane.axis, one.index) in wanted]
            found[label] = self._opened(chosen, "", opened)
        return found

    def showing(self) -> Counter[tuple[str, str]]:
        """(image, label) -> how many annotated slices show it. Opens nothing."""
        return Counter((one.image, one.label) for one in self._studies.support().only(nonempty=True))

    def _opened(
        self, slices: Iterable[SupportSlice], image_id: str, opened: dict[tuple[str, Plane], VolumeEmbeddings]
    ) -> list[LabelledSlice]:
        found = []
        for one in slices:
            key = one.image, one.plane
            try:
                if key not in opened:
                    opened[key] = self._images.embeddings(one.image, plane=one.plane)
                if not opened[key].grid.matches(one.grid):
                    raise OtherImage(one.image, one.grid, opened[key].grid)
            except UNUSABLE:  # its image was removed or cannot be read: nothing can be learned from it now
                if one.image == image_id:
                    raise
                continue
            known = None if one.annotation.known is None else one.annotation.known.array
            found.append(LabelledSlice(opened[key], one.index, one.mask, known, one.image))
        return found


def _spread(slices: list[SupportSlice], most: int) -> list[SupportSlice]:
    """At most so many of the slices, spread evenly, those that show the label first."""
    showing = [one for one in slices if not one.annotation.empty]
    empty = [one for one in slices if one.annotation.empty]
    kept = [showing[n] for n in evenly_spaced(len(showing), most)]
    return kept + [empty[n] for n in evenly_spaced(len(empty), most - len(kept))]
