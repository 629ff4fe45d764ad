"""What decoders propose in volumes of training patients, for the volume head: one file of examples a volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.atlas import guides_for
from ssmsam.fewshot.config import DEFAULTS, SegmentationConfig
from ssmsam.fewshot.pipeline import adapt
from ssmsam.fewshot.proposals import Target, propose
from ssmsam.fewshot.selection import candidates
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.files import whole_file
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.frame import draw_mask
from ssmsam_research.labelled_sets import Case
from ssmsam_research.protocols.fewshot_task import in_middles, with_ends, without_ends

_OWN = (1, 2, 3, 5, 5, 5, 9)
"""Annotated slices of the query's own volume, and of each other patient below: five are what is asked for most."""
_OTHERS = (1, 3, 5, 5, 10)
_PATIENTS = (1, 1, 2, 3)
_EMPTY_SHARE = 0.35
"""Chance that empty slices just past the ends are annotated too: a guess."""


@dataclass(frozen=True, eq=False)
class Example:
    """The objects that were proposed of one label in a volume, and the truth in cells: descriptors as in
    :class:`Described`, the ``area`` (K, n) of each mask and how much of it is ``inside``
    the target (K, n), the target's own area ``truth`` (n,), and ``known`` (n,), whether a slice is annotated."""

    slices: np.ndarray
    objects: np.ndarray
    shown: np.ndarray
    area: np.ndarray
    inside: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    name: str = ""


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """An embedded volume and its label map (slices, rows, columns)."""

    name: str
    embeddings: VolumeEmbeddings
    labels: np.ndarray

    @classmethod
    def of(cls, case: Case, embedder: Embedder) -> LabelledVolume:
        """Embeds every slice."""
        volume, labels = case.read()
        opened = embedder.open(volume)
        opened.embed()
        return cls(case.name, opened, labels)

    def masks(self, *, least_slices: int) -> dict[str, np.ndarray]:
        """Number of a label -> its mask, of the labels that so many slices show."""
        found = {str(value): self.labels == value for value in np.unique(self.labels) if value}
        return {name: mask for name, mask in found.items() if mask.any(axis=(1, 2)).sum() >= least_slices}

    def labelled(self, mask: np.ndarray, slices: Sequence[int]) -> list[LabelledSlice]:
        """Some slices as if a person had drawn them."""
        return [LabelledSlice(self.embeddings, index, mask[index]) for index in slices]


def within(
    volume: LabelledVolume, embedder: Embedder, decoder: TargetDecoder, rng: np.random.Generator
) -> Iterator[Example]:
    """Examples of all labels after some slices of the same volume were annotated."""
    masks = volume.masks(least_slices=4)
    support = {name: volume.labelled(mask, _annotated(mask, rng)) for name, mask in masks.items()}
    if support:
        task = adapt(support, embedder, decoder, pseudo_labels=False, config=DEFAULTS)
        yield from examples(task, volume.embeddings, masks, name=f"within/{volume.name}")


def across(
    volume: LabelledVolume,
    others: Sequence[LabelledVolume],
    embedder: Embedder,
    decoder: TargetDecoder,
    rng: np.random.Generator,
) -> Iterator[Example]:
    """Examples of all labels after slices of one to three ``others`` were annotated. Registers them, which takes
    seconds."""
    masks = volume.masks(least_slices=3)
    count, patients = int(rng.choice(_OTHERS)), int(rng.choice(_PATIENTS))
    support: dict[str, list[LabelledSlice]] = {}
    for number in rng.permutation(len(others))[:patients]:
        other = others[number]
        for name, mask in other.masks(least_slices=1).items():
            if name in masks:
                support.setdefault(name, []).extend(other.labelled(mask, in_middles(mask, count)))
    if support:
        task = adapt(support, embedder, decoder, config=DEFAULTS)
        truth = {name: masks[name] for name in support}
        yield from examples(task, volume.embeddings, truth, name=f"across/{volume.name}")


def _annotated(mask: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Slices of a mask that a person may have annotated: with its ends, within them or any, and empty ones past it."""
    count, shows = int(rng.choice(_OWN)), np.flatnonzero(mask.any(axis=(1, 2)))
    place = (with_ends, without_ends)[rng.integers(2)] if count > 1 and rng.random() < 2 / 3 else None
    chosen = place(mask, count) if place else rng.choice(shows, min(count, len(shows)), replace=False).tolist()
    if rng.random() < _EMPTY_SHARE:
        past = [int(shows[0]) - 1, int(shows[-1]) + 1]
        past = past if rng.random() < 0.5 else [past[rng.integers(2)]]
        chosen = [*chosen, *(index for index in past if 0 <= index < len(mask))]
    return sorted({int(index) for index in chosen})


def examples(
    task: AdaptedTask, query: VolumeEmbeddings, truth: Mapping[str, np.ndarray], *, name: str
) -> Iterator[Example]:
    """What ``task`` proposes in a volume, with the masks ``truth`` (slices, rows, columns) bool of its labels."""
    slices = range(query.count)
    task = replace(task, banks={label: task.banks[label] for label in truth})
    side, config = task.decoder.logits_side, SegmentationConfig()
    guides = guides_for(task.atlases, task.banks, query, slices, side)
    proposed = propose(task, query, slices, config=config, guides=guides, up_to_extent=True)
    for label, proposals in proposed.items():
        among = candidates(proposals, Target(task, label, query, config))
        if among.described is None:
            continue
        stack = query.plane.stack(truth[label])
        drawn = np.stack([draw_mask(one, query.frame, side)[0, 0].numpy() > 0.5 for one in stack])
        objects, known = np.stack(among.objects), np.isin(np.arange(query.count), list(among.around.annotated))
        if among.described.backwards:
            objects, drawn, known = objects[:, ::-1], drawn[::-1], known[::-1]
        yield Example(
            slices=among.described.slices.astype(np.float16),
            objects=among.described.objects,
            shown=among.described.drawn,
            area=objects.sum((2, 3)),
            inside=(objects & drawn).sum((2, 3)),
            truth=drawn.sum((1, 2)),
            known=known,
            name=f"{name}/{label}",
        )


def write_examples(path: Path, several: Sequence[Example]) -> None:
    """One file of many examples; readers see the whole file or none."""
    arrays = {f"{n}.{field}": value for n, one in enumerate(several) for field, value in vars(one).items()}
    with whole_file(path, ".npz") as partial:
        np.savez_compressed(partial, **arrays)


def read_examples(path: Path) -> list[Example]:
    """What :func:`write_examples` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        fields = list(Example.__dataclass_fields__)
        count = len(arrays.files) // len(fields)
        found = [{field: arrays[f"{n}.{field}"] for field in fields} for n in range(count)]
    return [Example(**{**one, "name": str(one["name"])}) for one in found]
