"""What decoders propose in volumes of training patients, for the volume head: one file of examples a volume.

The decoder knows the organs of these patients. For what to expect where it does not, some examples are *unfamiliar*:
the targets are regions, halves or pairs of organs that nobody names, or the decoder sees badly.
"""

from __future__ import annotations

import copy
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
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import Case
from ssmsam_research.protocols.fewshot_task import in_middles, with_ends, without_ends
from ssmsam_research.training.fewshot_episodes import STRENGTH, estranged_view
from ssmsam_research.training.pack import supervoxels

_OWN = (1, 2, 3, 5, 5, 5, 9)
"""Annotated slices of the query's own volume, and of each other patient below: five are what is asked for most."""
_OTHERS = (1, 3, 5, 5, 10)
_PATIENTS = (1, 1, 2, 3)
_EMPTY_SHARE = 0.35
"""Chance that empty slices just past the ends are annotated too: a guess."""
_UNFAMILIAR = (1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5, 6, 7, 9)
"""Annotated slices of unfamiliar targets: a guess, with many of the few that tell least."""
_KINDS = {"organ": 0.55, "region": 0.2, "half": 0.15, "pair": 0.1}
"""What unfamiliar targets are, and how often: a guess."""
_ESTRANGED = 0.55
"""Chance that the decoder sees badly: a guess."""
_UP_TO_EXTENT = 0.65
"""Chance that nothing is proposed past where the decoder sees the end, as when masks are served: a guess."""
_MOST = 3
"""Unfamiliar targets in a volume at a time: a guess, which bounds the time."""
_LEAST, _LEFT = 6, 4
"""Slices that such a target is on, and how many of them at least are not annotated: a guess."""
_REGION_SIDE = 120
"""Regions are sought in about so many columns: a guess, which bounds the time."""


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
    """An embedded volume, its label map (slices, rows, columns) and a map of regions of similar intensity."""

    name: str
    embeddings: VolumeEmbeddings
    labels: np.ndarray
    regions: np.ndarray

    @classmethod
    def of(cls, case: Case, embedder: Embedder) -> LabelledVolume:
        """Embeds every slice."""
        volume, labels = case.read()
        opened = embedder.open(volume)
        opened.embed()
        return cls(case.name, opened, labels, _regions(volume))

    def masks(self, *, least_slices: int) -> dict[str, np.ndarray]:
        """Number of a label -> its mask, of the labels that so many slices show."""
        found = {str(value): self.labels == value for value in np.unique(self.labels) if value}
        return {name: mask for name, mask in found.items() if mask.any(axis=(1, 2)).sum() >= least_slices}

    def unfamiliar(self, kind: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A few targets of one of the ``_KINDS``, by name; none where the volume has none."""
        organs = self.masks(least_slices=_LEAST)
        found = dict(organs)
        if kind == "region":
            values, sizes = np.unique(self.regions[self.regions > 0], return_counts=True)
            drawn = rng.choice(values, len(values), replace=False, p=sizes / sizes.sum()) if len(values) else values
            found = {f"region {value}": self.regions == value for value in drawn[: 4 * _MOST]}
        if kind == "half":
            found = {f"half of {name}": _half(mask, rng) for name, mask in organs.items()}
        if kind == "pair":
            pairs = [rng.choice(sorted(organs), 2, replace=False).tolist() for _ in range(_MOST * (len(organs) > 1))]
            found = {f"{one} and {other}": organs[one] | organs[other] for one, other in pairs}
        able = [name for name, mask in found.items() if mask.any(axis=(1, 2)).sum() >= _LEAST]
        return {name: found[name] for name in rng.permutation(able)[:_MOST].tolist()}

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


def unfamiliar(
    volume: LabelledVolume, embedder: Embedder, decoder: TargetDecoder, rng: np.random.Generator
) -> Iterator[Example]:
    """The same of targets, or by a decoder, as if organ and image had never been seen."""
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
    strength = float(rng.uniform(*STRENGTH)) if rng.random() < _ESTRANGED else 0.0
    up_to_extent = bool(rng.random() < _UP_TO_EXTENT)
    masks = volume.unfamiliar(kind, rng) or volume.unfamiliar("region", rng)
    support = {
        name: volume.labelled(mask, _annotated(mask, rng, counts=_UNFAMILIAR, left=_LEFT))
        for name, mask in masks.items()
    }
    if support:
        task = adapt(support, embedder, estranged(decoder, strength, rng), pseudo_labels=False, config=DEFAULTS)
        name = f"unfamiliar/{kind}/{strength:.2f}/{volume.name}"
        yield from examples(task, volume.embeddings, masks, name=name, up_to_extent=up_to_extent)


def estranged(decoder: TargetDecoder, strength: float, rng: np.random.Generator) -> TargetDecoder:
    """The same decoder, to which all that it looks at appears as :func:`estranged_view` says."""
    if not strength:
        return decoder
    weak, seed = copy.deepcopy(decoder), int(rng.integers(2**31))
    object.__setattr__(weak, "view", lambda embedding: estranged_view(decoder.view(embedding), strength, seed))
    return weak


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


def _annotated(mask: np.ndarray, rng: np.random.Generator, *, counts: Sequence[int] = _OWN, left: int = 0) -> list[int]:
    """Slices of a mask that a person may have annotated: with its ends, within them or any, and empty ones past it; all
    but at least ``left``."""
    shows = np.flatnonzero(mask.any(axis=(1, 2)))
    count = min(int(rng.choice(counts)), len(shows) - left)
    place = (with_ends, without_ends)[rng.integers(2)] if count > 1 and rng.random() < 2 / 3 else None
    chosen = place(mask, count) if place else rng.choice(shows, min(count, len(shows)), replace=False).tolist()
    if rng.random() < _EMPTY_SHARE:
        past = [int(shows[0]) - 1, int(shows[-1]) + 1]
        past = past if rng.random() < 0.5 else [past[rng.integers(2)]]
        chosen = [*chosen, *(index for index in past if 0 <= index < len(mask))]
    return sorted({int(index) for index in chosen})


def examples(
    task: AdaptedTask, query: VolumeEmbeddings, truth: Mapping[str, np.ndarray], *, name: str, up_to_extent: bool = True
) -> Iterator[Example]:
    """What ``task`` proposes in a volume, with the masks ``truth`` (slices, rows, columns) bool of its labels."""
    slices = range(query.count)
    task = replace(task, banks={label: task.banks[label] for label in truth})
    side, config = task.decoder.logits_side, SegmentationConfig()
    guides = guides_for(task.atlases, task.banks, query, slices, side)
    proposed = propose(task, query, slices, config=config, guides=guides, up_to_extent=up_to_extent)
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


def _regions(volume: Volume) -> np.ndarray:
    """(slices, rows, columns) numbers of regions of similar intensity, 0 where there is none."""
    scale = recipe_for(volume).scale(volume)
    image = np.clip((volume.array - scale.low) / (scale.high - scale.low), 0, 1)
    step = max(1, image.shape[1] // _REGION_SIDE)
    coarse = supervoxels(image[:, ::step, ::step], sigma=1.6, levels=9, offset=0.5)
    return coarse.repeat(step, axis=1).repeat(step, axis=2)[:, : image.shape[1], : image.shape[2]]


def _half(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What of a mask lies on one side of a plane along the volume, between a third and two thirds of it."""
    half, place = np.zeros_like(mask), np.argwhere(mask) @ np.array([0, *rng.normal(size=2)])
    half[mask] = place > np.quantile(place, rng.uniform(0.3, 0.7))
    return half


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
