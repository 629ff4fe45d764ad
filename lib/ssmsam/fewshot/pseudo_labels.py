"""Pseudo-labels: labelled volumes, segmented by the model itself before it turns to other patients.

A person labels slices that show the target. What else looks like it, and where it ends, is on the slices in between and
beyond, which nobody labelled. Within a labelled volume the model finds the target well, for the annotated slices hold
it: so it first segments these volumes. Their slices, those without the target too, then say on which slices of other
volumes the target is. Ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.config import PseudoLabelConfig
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.ops import evenly_spaced


def slices_to_pseudo_label(
    slices: Sequence[LabelledSlice], config: PseudoLabelConfig
) -> Iterator[tuple[VolumeEmbeddings, list[int]]]:
    """Volumes of one label's labelled slices, each with the slices to give pseudo-labels to, ascending."""
    if config.slices == 0:
        return
    counts = Counter(one.volume for one in slices)
    for volume, _ in counts.most_common(config.volumes):
        labelled = [one for one in slices if one.volume == volume]
        taken = {one.index for one in labelled}
        embeddings = labelled[0].embeddings
        spread = [index for index in evenly_spread(embeddings, config) if index not in taken]
        if spread:
            yield embeddings, spread


def evenly_spread(embeddings: VolumeEmbeddings, config: PseudoLabelConfig) -> list[int]:
    """Slices from the first to the last of a volume, about equally far apart."""
    length = (embeddings.count - 1) * embeddings.slice_mm
    return evenly_spaced(embeddings.count, max(1, min(config.slices, int(length / config.spacing_mm) + 1)))


def as_labelled(embeddings: VolumeEmbeddings, mask: np.ndarray, slices: Sequence[int]) -> list[LabelledSlice]:
    """Some slices of a mask on the volume's own grid (slices, rows, columns) bool."""
    stack = embeddings.plane.stack(mask)
    return [LabelledSlice(embeddings, index, stack[index]) for index in slices]
