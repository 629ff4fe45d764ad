"""Few-shot episodes on embedded slices: labelled slices of one volume or of others, and queries to answer.

The context of a query comes from the same :class:`~ssmsam.fewshot.support_bank.SupportBank` that serves users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.atlas import averaged, drawn_maps
from ssmsam.files import whole_file
from ssmsam.models.encoder import Embedding
from ssmsam.registration.slices import SliceMotion, both_ways
from ssmsam_research.labelled_sets import Case
from ssmsam_research.training.carried_masks import CarriedMasks, read_carried
from ssmsam_research.training.embedded_slices import draw, spread
from ssmsam_research.training.pack import supervoxels

_BEYOND = (1, 4)
"""Slices so far beyond the outermost labelled ones are embedded too: the target is not there. A guess."""


@dataclass(frozen=True, eq=False)
class EmbeddedVolume:
    """Slices of one volume in both encoders. ``embedding`` float16 on (n, ...); ``label`` (n, S, S) uint8 in the
    encoder's frame; ``position`` (n,) in mm, ``centres`` (n, 2) of the body in input pixels, ``drawn`` (rows, columns)
    that the slice fills, ``input_mm`` the side of an input pixel; ``regions`` (maps, n, S/2, S/2) without labels."""

    dataset: str
    name: str
    embedding: Embedding
    label: np.ndarray
    position: np.ndarray
    centres: np.ndarray
    drawn: tuple[int, int]
    input_mm: float
    regions: np.ndarray
    shows: dict[int, np.ndarray] = field(default_factory=dict)
    """Label value -> (n,) bool."""
    carried: dict[str, CarriedMasks] = field(default_factory=dict)
    """Volume -> what its labels say of this one's slices, by registration."""
    pixels: np.ndarray | None = None
    """(n, S/2, S/2) in [0, 1], where slices are registered with their neighbours."""

    @cached_property
    def motion(self) -> SliceMotion | None:
        """How the anatomy moves from slice to slice."""
        if self.pixels is None or len(self.pixels) < 2:
            return None
        order = np.argsort(self.position)
        steps = np.stack([both_ways(lower, upper) for lower, upper in pairwise(self.pixels[order])])
        return SliceMotion(self.position[order], steps)

    @classmethod
    def from_file(cls, path: Path, *, seed: int = 0) -> EmbeddedVolume:
        """What :func:`embed_volume` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            levels = sorted(name for name in arrays.files if name.startswith("level"))
            embedding: Embedding = {
                "image": torch.from_numpy(arrays["image"]),
                "levels": [torch.from_numpy(arrays[name]) for name in levels],
            }
            label, pixels = arrays["label"], arrays["pixels"]
            position, centres, frame = arrays["position"], arrays["centres"], arrays["frame"]
        dataset, _, name = path.stem.partition("-")
        rng = np.random.default_rng(seed)
        half = pixels.reshape(len(pixels), 128, 2, 128, 2).mean((2, 4)) / 255.0
        regions = [supervoxels(half, sigma=s, levels=n, offset=rng.random()) for s, n in ((1.0, 14), (1.6, 9))]
        shows = {int(v): (label == v).any(axis=(1, 2)) for v in np.unique(label) if v}
        return cls(
            dataset, name, embedding, label, position, centres,
            (int(frame[0]), int(frame[1])), float(frame[2]), np.stack(regions), shows,
            {one.stem.partition("-from-")[2]: read_carried(one) for one in path.parent.glob(f"{path.stem}-from-*.npz")},
            half.astype(np.float32),
        )  # fmt: skip

    def slices(self, index: np.ndarray) -> Embedding:
        """The embeddings of some slices, float32."""
        rows = torch.from_numpy(np.asarray(index))
        return {
            "image": self.embedding["image"][rows].float(),
            "levels": [level[rows].float() for level in self.embedding["levels"]],
        }


def embed_volume(case: Case, dataset: str, *, embedder: Embedder, folder: Path, limit: int) -> Path | None:
    """At most ``limit`` slices of a case that hold a label, evenly spread, and a few beyond, embedded and kept in
    ``folder`` as ``SET-CASE.npz``; what is there is kept. None for a case without labels."""
    path = folder / f"{dataset}-{case.name}.npz"
    if path.exists():
        return path
    volume, labels = case.read()
    present = np.flatnonzero(labels.any(axis=(1, 2)))
    if not len(present):
        return None
    beyond = [n for step in _BEYOND for n in (present[0] - step, present[-1] + step) if 0 <= n < len(labels)]
    chosen = np.unique([*spread(present, limit), *beyond])
    opened = embedder.open(volume)
    pixels, drawn = draw(volume, labels, chosen)
    halves = [opened.half(int(index)) for index in chosen]
    rows, columns = opened.frame.resized
    with whole_file(path, ".npz") as partial:
        np.savez(
            partial,
            **{name: np.stack([half[name] for half in halves]) for name in halves[0]},
            label=drawn,
            pixels=pixels,
            position=np.array([opened.position_mm(int(index)) for index in chosen]),
            centres=opened.body_centres[chosen],
            frame=np.array([rows, columns, opened.frame.input_mm]),
        )
    return path


def load_volumes(folder: Path, *, keep: Callable[[str], bool] = lambda dataset: True) -> list[EmbeddedVolume]:
    """What a folder of :func:`embed_volume` holds, of the sets that ``keep`` wants. Raises FileNotFoundError when that
    is nothing."""
    found = [path for path in sorted(folder.glob("*.npz")) if "-from-" not in path.name]
    paths = [path for path in found if keep(path.stem.partition("-")[0])]
    if not paths:
        raise FileNotFoundError(f"no embedded volumes in {folder}: make them with `ssmsam train embed-volumes`")
    return [EmbeddedVolume.from_file(path) for path in paths]


STRENGTH = (0.05, 0.6)
"""How badly a decoder sees that sees badly, from the least to the most: a guess."""


def estranged_view(seen: Embedding, strength: float, seed: int) -> Embedding:
    """What a decoder looks at, mixed with something else: with ``strength`` in [0, 1] of every embedding turned at
    random, alike in all slices for one ``seed``. It knows no organ then, but what the labelled slices tell of each
    other still holds, and the last level, from which the online optimiser learns anew, stays."""

    def mixed(maps: torch.Tensor, level: int) -> torch.Tensor:
        channels = maps.shape[1]
        turn = np.linalg.qr(np.random.default_rng((seed, level)).normal(size=(channels, channels)))[0]
        mixture = torch.from_numpy((1 - strength) * np.eye(channels) + strength * turn).to(maps)
        return torch.einsum("nchw,dc->ndhw", maps, mixture)

    fine = [mixed(maps, level) for level, maps in enumerate(seen["levels"][:-1])]
    return {"image": mixed(seen["image"], len(fine)), "levels": [*fine, seen["levels"][-1]]}


@dataclass(frozen=True)
class FewShotEpisodeConfig:
    """How episodes are drawn. All numbers are guesses."""

    queries: int = 5
    cross_share: float = 0.5
    most_supports: int = 7
    most_patients: int = 3
    own_share: float = 0.25
    """Chance that queries of an episode over patients also see a slice of their own volume."""
    region_share: float = 0.15
    union_share: float = 0.07
    away_share: float = 0.25
    """Share of queries on which the target is not."""
    atlas_share: float = 0.75
    """Chance that registered volumes are shown where there are any."""
    empty_share: float = 0.3
    """Chance that one of the labelled slices is without the target."""
    scattered_share: float = 0.0
    """Chance that labelled slices of the query's volume lie anywhere, not evenly spread."""


@dataclass(frozen=True, eq=False)
class Episode:
    """``embedding`` of B slices, ``masks`` and ``known`` (B, 1, S/2, S/2) in [0, 1]; the first ``supports`` are
    labelled, the others are asked for: slices of the volume called ``query``, or of single images whose own slices are
    not among the labelled ones, of which that is the first. Further fields as in
    :class:`~ssmsam.fewshot.support_bank.Places`."""

    dataset: str
    embedding: Embedding
    masks: torch.Tensor
    known: torch.Tensor
    supports: int
    query: str
    volumes: tuple[str, ...]
    positions: np.ndarray
    centres: np.ndarray
    cell_mm: np.ndarray
    motions: Mapping[str, SliceMotion] = field(default_factory=dict)
    atlas: torch.Tensor | None = None
    """(queries, 3, S/2, S/2), as in :class:`~ssmsam.models.fewshot_decoder.DecoderContext`."""


_Chosen = tuple[EmbeddedVolume, np.ndarray, np.ndarray]
"""A volume, slices of it and the target's masks (n, S, S) on all of its slices."""


class FewShotEpisodes:
    """Draws :class:`Episode`: a set as often as the square root of the number of its labels says."""

    def __init__(self, volumes: Sequence[EmbeddedVolume], config: FewShotEpisodeConfig) -> None:
        self.config = config
        names = sorted({one.dataset for one in volumes})
        self.sets = [[one for one in volumes if one.dataset == name] for name in names]
        labels = [len({value for one in several for value in one.shows}) for several in self.sets]
        stacks = [np.mean([len(one.label) for one in several]) for several in self.sets]
        weights = np.sqrt(labels) * np.where(np.array(stacks) > 2, 4.0, 1.0)
        self.chances = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> Episode:
        while True:
            several = self.sets[rng.choice(len(self.sets), p=self.chances)]
            query = several[rng.integers(len(several))]
            crossing = len(query.label) < 4 or rng.random() < self.config.cross_share
            found = self._over(several, query, rng) if crossing else self._within(query, rng)
            if found is not None:
                return found

    def _within(self, volume: EmbeddedVolume, rng: np.random.Generator) -> Episode | None:
        mask = self._target(volume, rng)
        shows = np.flatnonzero(mask.any(axis=(1, 2)))
        if len(shows) < 3:
            return None
        count = int(rng.integers(1, self.config.most_supports + 1))
        low, high = (shows[0], shows[-1])
        if rng.random() < 0.4:  # the ends are not known
            low, high = sorted(rng.choice(shows, 2, replace=False))
        supports = np.unique(np.linspace(low, high, count).round().astype(int))
        if count == 1 or rng.random() < self.config.scattered_share:
            supports = rng.choice(shows, min(count, len(shows) - 1), replace=False)
        if rng.random() < self.config.empty_share:
            empty = np.flatnonzero(~mask.any(axis=(1, 2)))
            supports = np.unique([*supports, *rng.permutation(empty)[:1]])
        if not mask[supports].any():
            return None
        queries = self._queries(mask, supports, rng)
        return None if queries is None else self._episode([(volume, supports, mask)], (volume, queries, mask))

    def _over(self, several: list[EmbeddedVolume], query: EmbeddedVolume, rng: np.random.Generator) -> Episode | None:
        others = [one for one in several if one is not query and set(one.shows) & set(query.shows)]
        if not others or not query.shows:
            return None
        first = others[rng.integers(len(others))]
        values = sorted(set(first.shows) & set(query.shows))
        wanted = {int(rng.choice(values))}
        if len(values) > 1 and rng.random() < self.config.union_share:
            wanted.add(int(rng.choice(values)))
        patients = int(rng.integers(1, self.config.most_patients + 1))
        beside = [one for one in others if one is not first and wanted <= set(one.shows)]
        chosen: list[_Chosen] = []
        for one in [first, *(beside[n] for n in rng.permutation(len(beside))[: patients - 1])]:
            mask = np.isin(one.label, list(wanted))
            shows = np.flatnonzero(mask.any(axis=(1, 2)))
            count = int(rng.integers(1, max(2, self.config.most_supports // patients) + 1))
            rows = np.unique(np.linspace(0, len(shows) - 1, count + 2)[1:-1].round().astype(int))
            chosen.append((one, shows[rows], mask))
        mask = np.isin(query.label, list(wanted))
        own = np.array([], dtype=int)
        if len(mask) > 4 and rng.random() < self.config.own_share:
            own = rng.choice(np.flatnonzero(mask.any(axis=(1, 2))), 1)
            chosen.append((query, own, mask))
        if len(mask) < 4:
            return self._single(chosen, [query, *beside], sorted(wanted), rng)
        queries = self._queries(mask, own, rng)
        if queries is None:
            return None
        atlas = self._atlas(query, queries, [one.name for one, *_ in chosen], sorted(wanted), rng)
        return replace(self._episode(chosen, (query, queries, mask)), atlas=atlas)

    def _single(
        self, supports: list[_Chosen], several: Sequence[EmbeddedVolume], wanted: list[int], rng: np.random.Generator
    ) -> Episode:
        """Queries in images of a slice or two: one slice of each of ``several``, the first of them always."""
        taken = {one.name for one, *_ in supports}
        free = [one for one in several if one.name not in taken and len(one.label) < 4]
        asked: list[_Chosen] = []
        for one in [*free[:1], *(free[n] for n in 1 + rng.permutation(len(free) - 1)[: self.config.queries - 1])]:
            mask = np.isin(one.label, wanted)
            asked.append((one, rng.choice(np.flatnonzero(mask.any(axis=(1, 2))), 1), mask))
        return self._episode(supports, *asked)

    def _atlas(
        self,
        query: EmbeddedVolume,
        rows: np.ndarray,
        supports: Sequence[str],
        wanted: Sequence[int],
        rng: np.random.Generator,
    ) -> torch.Tensor | None:
        """What registration carries from the support volumes, averaged by trust as in the product."""
        propagated = [query.carried[name].of(wanted, rows) for name in supports if name in query.carried]
        guides = [one for one in propagated if one is not None]
        if not guides or rng.random() > self.config.atlas_share:
            return None
        return F.interpolate(drawn_maps(*averaged(guides)), scale_factor=2, mode="bilinear", align_corners=False)

    def _target(self, volume: EmbeddedVolume, rng: np.random.Generator) -> np.ndarray:
        values = list(volume.shows)
        if not values or rng.random() < self.config.region_share:
            regions = volume.regions[rng.integers(len(volume.regions))]
            names = np.unique(regions[rng.integers(len(regions))])
            names = names[names > 0]
            if len(names):
                return (regions == rng.choice(names)).repeat(2, axis=1).repeat(2, axis=2)
        wanted = [int(rng.choice(values))] if values else []
        if len(values) > 1 and rng.random() < self.config.union_share:
            wanted.append(int(rng.choice(values)))
        return np.isin(volume.label, wanted)

    def _queries(self, mask: np.ndarray, supports: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        open_ = np.setdiff1d(np.arange(len(mask)), supports)
        there = mask[open_].any(axis=(1, 2))
        away = min(int((~there).sum()), int(rng.binomial(self.config.queries, self.config.away_share)))
        on = rng.permutation(open_[there])[: self.config.queries - away]
        if not len(on):
            return None
        return np.sort(np.concatenate([on, rng.permutation(open_[~there])[:away]]))

    def _episode(self, supports: list[_Chosen], *queries: _Chosen) -> Episode:
        everything = [*supports, *queries]
        embeddings = [volume.slices(rows) for volume, rows, _ in everything]
        masks = np.concatenate([_half(mask[rows]) for _, rows, mask in everything])
        known = np.concatenate([_half(_inside(volume, len(rows))) for volume, rows, _ in everything])
        counts = [len(rows) for _, rows, _ in everything]
        return Episode(
            dataset=queries[0][0].dataset,
            embedding={
                "image": torch.cat([one["image"] for one in embeddings]),
                "levels": [torch.cat(parts) for parts in zip(*(one["levels"] for one in embeddings), strict=True)],
            },
            masks=torch.from_numpy(masks)[:, None],
            known=torch.from_numpy(known)[:, None],
            supports=sum(counts[: len(supports)]),
            query=queries[0][0].name,
            volumes=tuple(volume.name for volume, rows, _ in everything for _ in rows),
            positions=np.concatenate([volume.position[rows] for volume, rows, _ in everything]),
            centres=np.concatenate([volume.centres[rows] for volume, rows, _ in everything]),
            cell_mm=np.concatenate([np.full(len(rows), 2 * volume.input_mm) for volume, rows, _ in everything]),
            motions={one.name: one.motion for one, *_ in supports if one is queries[0][0] and one.motion is not None},
        )


def _half(masks: np.ndarray) -> np.ndarray:
    side = masks.shape[-1] // 2
    return masks.reshape(len(masks), side, 2, side, 2).mean(axis=(2, 4), dtype=np.float32)


def _inside(volume: EmbeddedVolume, count: int) -> np.ndarray:
    rows, columns = volume.drawn
    inside = np.zeros((count, *volume.label.shape[1:]), dtype=bool)
    inside[:, :rows, :columns] = True
    return inside
