"""Groups: a few slices of one or two volumes with the same targets on all of them, each slice a query in its turn.

In one volume a group is the task of completing a volume; over two volumes it is that of finding an organ in another
patient. One volume shown twice, differently deformed, stands for two patients where nobody labelled the same organ in
two: any region can be looked for there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ssmsam.fewshot.support_bank import interpolated, signed_distance
from ssmsam.models.prompt_small import closeness
from ssmsam_research.training.augmentation import AugmentationConfig, crop_grid, recoloured, sample
from ssmsam_research.training.pack import SIZE, PackedVolume
from ssmsam_research.training.semantics import Vocabulary

Target = tuple[np.ndarray, ...]
"""One boolean array (n, height, width) for each volume of the group."""


@dataclass(frozen=True)
class GroupConfig:
    """How groups are drawn. Lengths in input pixels unless the name says millimetres."""

    groups: int = 2
    """Groups in a batch of the largest side; smaller crops come in more groups, at about the same cost."""
    slices: int = 4
    targets: int = 2
    rows: int = 16
    """At most this many (query, target) pairs of a batch."""
    sides: tuple[int, ...] = (160, 256)
    cross_share: float = 0.5
    """Share of groups over two volumes, where a dataset has two with the same label."""
    twin_share: float = 0.0
    """Share of groups in one volume that show it as though it were two patients."""
    twin_bend: float = 1.5
    """How much more than other images twins are bent: patients differ in more than size and pose."""
    twin_recolour: float = 0.0
    """Chance for each of two twins that its regions are repainted a little, as by another phase of contrast agent."""
    organ_share: float = 0.7
    """Share of targets in one volume that are labelled organs; the others are regions."""
    organ_size_power: float = 0.25
    margin_mm: float = 40.0
    """How far beyond the target slices may be drawn."""
    far_share: float = 0.6
    """Chance that one slice of a group comes from anywhere in its volume."""
    own_share: float = 0.25
    """Chance that a query of a group over two volumes is also shown a slice of its own volume."""
    no_prior_share: float = 0.15
    zoom_share: float = 0.25
    zoom: tuple[float, float] = (1.4, 2.4)
    """Enlargement of groups in one volume that are looked at closely, and how often they are."""
    min_area: int = 24
    dataset_weights: dict[str, float] = field(default_factory=dict)
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(scale=(0.8, 1.3), flip=0.25))


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """B slices with K masks on them and N queries; S = side / 2.

    ``slices`` (B, 3, side, side) in [0, 1]; ``described`` (K,) numbers of slices and ``masks`` (K, 1, S, S) in [0, 1]
    the targets on them. For each query: ``asked`` (N,) its place among the K, ``supports`` (N, slices - 1) those it
    is shown, -1 for none, ``near`` (N, slices - 1), ``prior`` (N, 1, S, S) and ``trust`` (N, 2) as the network takes
    them. ``semantic`` (B, side / 4, side / 4) class numbers, -1 where they are not to be learned, and ``labelled``
    (B, C) bool the classes whose absence means something.
    """

    slices: torch.Tensor
    described: torch.Tensor
    masks: torch.Tensor
    asked: torch.Tensor
    supports: torch.Tensor
    near: torch.Tensor
    prior: torch.Tensor
    trust: torch.Tensor
    semantic: torch.Tensor
    labelled: torch.Tensor

    def to(self, device: str) -> GroupBatch:
        """The same batch on another device."""
        return GroupBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Group:
    """Drawn slices: ``pixels`` (n, 3, side, side), ``masks`` (targets, n, S, S) in [0, 1], ``volume`` (n,) which of the
    volumes, ``position`` (n,) in millimetres, ``semantic`` (n, side / 4, side / 4), ``labelled`` (n, C)."""

    pixels: np.ndarray
    masks: np.ndarray
    volume: np.ndarray
    position: np.ndarray
    semantic: np.ndarray
    labelled: np.ndarray


def assembled(groups: Sequence[Group], rng: np.random.Generator, config: GroupConfig) -> GroupBatch:
    """Several groups as one batch, with a choice of queries and of supports for each."""
    described: list[int] = []
    masks: list[np.ndarray] = []
    rows: list[_Row] = []
    first = 0
    for group in groups:
        for target in group.masks:
            distances = [signed_distance(mask > 0.5) for mask in target]
            rows += _rows(group, target, distances, len(described), rng, config)
            described += [first + number for number in range(len(target))]
            masks += list(target)
        first += len(group.pixels)
    picked = [rows[n] for n in rng.permutation(len(rows))[: config.rows]]
    asked, supports, near, prior, trust = zip(*picked, strict=True)
    return GroupBatch(
        slices=torch.from_numpy(np.concatenate([group.pixels for group in groups])),
        described=torch.tensor(described),
        masks=torch.from_numpy(np.stack(masks))[:, None].float(),
        asked=torch.tensor(asked),
        supports=torch.tensor(np.array(supports)),
        near=torch.tensor(np.array(near), dtype=torch.float32),
        prior=torch.from_numpy(np.stack(prior))[:, None],
        trust=torch.tensor(np.array(trust), dtype=torch.float32),
        semantic=torch.from_numpy(np.concatenate([group.semantic for group in groups])),
        labelled=torch.from_numpy(np.concatenate([group.labelled for group in groups])),
    )


_Row = tuple[int, list[int], list[float], np.ndarray, tuple[float, float]]


def _rows(
    group: Group,
    target: np.ndarray,
    distances: list[np.ndarray],
    offset: int,
    rng: np.random.Generator,
    config: GroupConfig,
) -> list[_Row]:
    """Each slice as a query of one target; none where no support shows the target."""
    rows: list[_Row] = []
    count = len(target)
    shows = target.sum(axis=(1, 2)) >= config.min_area / 4
    for query in range(count):
        # a slice that was drawn twice is not shown to itself
        beside = (group.volume == group.volume[query]) & (group.position != group.position[query])
        own = np.flatnonzero(beside).tolist()
        other = [n for n in range(count) if group.volume[n] != group.volume[query]]
        if other and rng.random() > config.own_share:
            own = []
        supports = _some(other + own, rng) if other or own else []
        if not shows[supports].any():
            continue
        own = [n for n in supports if group.volume[n] == group.volume[query]]
        known = {} if rng.random() < config.no_prior_share else {float(group.position[n]): distances[n] for n in own}
        prior = interpolated(known, float(group.position[query]), (target.shape[1], target.shape[2]))
        near = [closeness(group.position[n] - group.position[query]) if n in own else 0.0 for n in supports]
        missing = count - 1 - len(supports)
        places = [offset + n for n in supports] + [-1] * missing
        rows.append((offset + query, places, near + [0.0] * missing, prior.distance, (prior.between, prior.closeness)))
    return rows


def _some(numbers: list[int], rng: np.random.Generator) -> list[int]:
    """All of them or, half of the time, a random part; never none."""
    keep = len(numbers) if rng.random() < 0.5 else int(rng.integers(1, len(numbers) + 1))
    return sorted(rng.permutation(numbers)[:keep].tolist())


_TWIN_PAINT = 0.1, 0.5
"""How much of a twin's brightness is repainted, where it is."""
_BODY_PIXELS, _TWIN_PIXELS = 4.0, 10.0
"""How far off the same place of another body is taken to be (standard deviation), besides what differs already: between
patients, and between twins, of whom nothing does."""


class Groups:
    """Draws :class:`GroupBatch` from packed volumes."""

    def __init__(self, *, volumes: Sequence[PackedVolume], vocabulary: Vocabulary, config: GroupConfig) -> None:
        self.config = config
        self.vocabulary = vocabulary
        names = sorted({volume.info.dataset for volume in volumes})
        self._sets = {name: [v for v in volumes if v.info.dataset == name] for name in names}
        weights = np.array([config.dataset_weights.get(name, 1.0) for name in names])
        self._names, self._weights = names, weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> GroupBatch:
        """One batch."""
        side = int(rng.choice(self.config.sides))
        count = max(1, round(self.config.groups * (max(self.config.sides) / side) ** 2))
        return assembled([self.draw_one(rng, side) for _ in range(count)], rng, self.config)

    def draw_one(self, rng: np.random.Generator, side: int) -> Group:
        """One group of crops with this side."""
        while True:
            several = self._sets[str(rng.choice(self._names, p=self._weights))]
            group = self._draw_group(several, side, rng)
            if group is not None:
                return group

    def _draw_group(self, several: list[PackedVolume], side: int, rng: np.random.Generator) -> Group | None:
        first = several[rng.integers(len(several))]
        if rng.random() < self.config.cross_share and first.info.labels and len(several) > 1:
            second = several[rng.integers(len(several))]
            if second is not first:
                return self._over_two(first, second, side, rng)
        return self._in_one(first, side, rng)

    def _in_one(self, volume: PackedVolume, side: int, rng: np.random.Generator) -> Group | None:
        config = self.config
        target = _target(volume, rng, config)
        chosen = None if target is None else _chosen_slices(target, volume, config.slices, rng, config)
        if target is None or chosen is None:
            return None
        targets: list[Target] = [(target,)]
        for _ in range(config.targets - 1):
            beside = _beside(volume, chosen, rng, config)
            targets += [] if beside is None else [(beside,)]
        if rng.random() < config.twin_share:
            return self._twins(volume, chosen, [one[0] for one in targets], side, rng)
        return self._group([volume], [chosen], targets, side, rng, zoomed=rng.random() < config.zoom_share)

    def _twins(
        self, volume: PackedVolume, chosen: np.ndarray, targets: list[np.ndarray], side: int, rng: np.random.Generator
    ) -> Group | None:
        """Half of the slices as one patient and half as another. None where one of them would lack the target."""
        half = rng.permutation(len(chosen)) < len(chosen) // 2
        first, second = chosen[half], chosen[~half]
        if not all(targets[0][slices].any() for slices in (first, second)):
            return None
        twice: list[Target] = [(target, target) for target in targets]
        return self._group([volume, volume], [first, second], twice, side, rng, zoomed=False)

    def _over_two(self, first: PackedVolume, second: PackedVolume, side: int, rng: np.random.Generator) -> Group | None:
        config = self.config
        common = [name for name in first.info.labels if name in second.info.labels]
        common = [name for name in common if all((v.label == v.info.labels[name]).any() for v in (first, second))]
        if not common:
            return None
        sizes = np.array([(first.label[:, ::4, ::4] == first.info.labels[name]).sum() + 1.0 for name in common])
        weights = sizes**config.organ_size_power
        names = rng.choice(common, size=min(len(common), config.targets), p=weights / weights.sum(), replace=False)
        targets: list[Target] = [tuple(v.label == v.info.labels[n] for v in (first, second)) for n in names]
        half = config.slices // 2
        chosen = [
            _chosen_slices(one, volume, count, rng, replace(config, margin_mm=config.margin_mm / 3))
            for one, volume, count in zip(targets[0], (first, second), (half, config.slices - half), strict=True)
        ]
        if chosen[0] is None or chosen[1] is None:
            return None
        return self._group([first, second], [chosen[0], chosen[1]], targets, side, rng, zoomed=False)

    def _group(
        self,
        volumes: list[PackedVolume],
        chosen: list[np.ndarray],
        targets: list[Target],
        side: int,
        rng: np.random.Generator,
        *,
        zoomed: bool,
    ) -> Group:
        augmentation = self._one_contrast(volumes, rng, zoomed=zoomed)
        flipped = rng.random() < self.config.augmentation.flip, rng.random() < self.config.augmentation.flip_y
        augmentation = replace(augmentation, flip=float(flipped[0]), flip_y=float(flipped[1]))
        pixels, masks, semantic, labelled = [], [], [], []
        first = _centre(targets[0][0][chosen[0]], rng, side, zoomed=zoomed)
        for number, (volume, slices) in enumerate(zip(volumes, chosen, strict=True)):
            centre = first if number == 0 else _same_place(first, volumes[0], chosen[0], volume, slices, rng)
            grid = crop_grid(rng, centre, side, SIZE, augmentation)
            pixels.append(_pixels(volume, slices, grid, rng, augmentation))
            masks.append(np.stack([_mask(target[number][slices], grid) for target in targets]))
            classes = self.vocabulary.classes(volume)[sample_labels(volume, slices, grid)]
            semantic.append(np.full_like(classes, -1) if any(flipped) else classes)
            labelled.append(np.repeat(self.vocabulary.labelled(volume)[None], len(slices), axis=0))
        return Group(
            pixels=np.concatenate(pixels),
            masks=np.concatenate(masks, axis=1),
            volume=np.repeat(np.arange(len(volumes)), [len(slices) for slices in chosen]),
            position=np.concatenate([s * v.info.slice_mm for s, v in zip(chosen, volumes, strict=True)]),
            semantic=np.concatenate(semantic),
            labelled=np.concatenate(labelled),
        )

    def _one_contrast(
        self, volumes: Sequence[PackedVolume], rng: np.random.Generator, *, zoomed: bool
    ) -> AugmentationConfig:
        """What a group's images have in common: over two patients no repainting, and inverted both or neither.

        Twins are always bent, as two patients differ in more than size and pose, and may be repainted a little.
        """
        augmentation = self.config.augmentation
        if zoomed:
            augmentation = replace(augmentation, scale=self.config.zoom)
        if len(volumes) > 1:
            augmentation = replace(augmentation, recolour=0.0, invert=float(rng.random() < augmentation.invert))
        if len(volumes) > 1 and volumes[0] is volumes[1]:
            augmentation = replace(
                augmentation,
                elastic=1.0,
                elastic_pixels=self.config.twin_bend * augmentation.elastic_pixels,
                recolour=self.config.twin_recolour,
                recolour_share=_TWIN_PAINT,
            )
        return augmentation


def _target(volume: PackedVolume, rng: np.random.Generator, config: GroupConfig) -> np.ndarray | None:
    """A boolean target over a volume: an organ or a region."""
    organs = [value for value in volume.info.labels.values()]
    if organs and rng.random() < config.organ_share:
        sizes = np.bincount(volume.label[:, ::4, ::4].ravel(), minlength=256)[organs] + 1.0
        weights = sizes**config.organ_size_power
        return volume.label == int(rng.choice(organs, p=weights / weights.sum()))
    regions = volume.regions[rng.integers(len(volume.regions))]
    seen = regions[rng.integers(len(regions))]
    names = np.unique(seen[seen > 0])
    return regions == names[rng.integers(len(names))] if len(names) else None


def _beside(
    volume: PackedVolume, slices: np.ndarray, rng: np.random.Generator, config: GroupConfig
) -> np.ndarray | None:
    """Another target that is on one of the slices."""
    if volume.info.labels and rng.random() < config.organ_share:
        found = [v for v in np.unique(volume.label[slices][:, ::4, ::4]) if v in volume.info.labels.values()]
        return volume.label == int(rng.choice(found)) if found else None
    regions = volume.regions[rng.integers(len(volume.regions))]
    names = np.unique(regions[slices])
    names = names[names > 0]
    return regions == names[rng.integers(len(names))] if len(names) else None


def _chosen_slices(
    target: np.ndarray, volume: PackedVolume, count: int, rng: np.random.Generator, config: GroupConfig
) -> np.ndarray | None:
    """Sorted slices around the target, at least one of which shows it well; None when the target is too small."""
    areas = target.sum(axis=(1, 2)) * (SIZE // target.shape[-1]) ** 2
    shown = np.flatnonzero(areas >= config.min_area)
    if not len(shown):
        return None
    margin = rng.uniform(0, config.margin_mm) / volume.info.slice_mm
    low, high = max(0, shown[0] - round(margin)), min(len(target) - 1, shown[-1] + round(margin))
    span = max(count - 1, round((high - low) * rng.uniform(0.2, 1.0) ** 0.5))
    sure = int(rng.choice(shown))
    start = int(np.clip(sure - rng.integers(0, span + 1), 0, max(0, len(target) - 1 - span)))
    inside = np.arange(start, min(len(target), start + span + 1))
    others = rng.permutation(inside[inside != sure])[: count - 1].tolist()
    if rng.random() < config.far_share and others:
        others[0] = int(rng.integers(len(target)))
    chosen = sorted({sure, *others})
    while len(chosen) < count:  # a volume of very few slices, or a slice drawn twice
        chosen = sorted([*chosen, int(rng.integers(len(target)))])
    return np.array(chosen)


def _centre(masks: np.ndarray, rng: np.random.Generator, side: int, *, zoomed: bool) -> tuple[float, float]:
    """Where the crop's centre goes: near the target, or near the image's where the crop shows all of it."""
    if side == SIZE and not zoomed:
        x, y = SIZE / 2 + rng.normal(0, 10, 2)
        return float(x), float(y)
    _, ys, xs = np.nonzero(masks)
    factor = SIZE / masks.shape[-1]
    x, y = np.array([xs.mean(), ys.mean()]) * factor + rng.normal(0, side / 10, 2)
    return float(x), float(y)


def _same_place(
    centre: tuple[float, float],
    first: PackedVolume,
    first_slices: np.ndarray,
    second: PackedVolume,
    second_slices: np.ndarray,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The same place of another patient's body, as far as bodies are alike: where the target is there, nobody said."""
    here, there = (
        volume.body_centres[slices].mean(axis=0) for volume, slices in ((first, first_slices), (second, second_slices))
    )
    spread = _TWIN_PIXELS if first is second else _BODY_PIXELS
    x, y = np.array(centre) + there - here + rng.normal(0, spread, 2)
    return float(x), float(y)


def _mask(target: np.ndarray, grid: torch.Tensor) -> np.ndarray:
    """(n, height, width) bool -> (n, S, S) in [0, 1]."""
    full = sample(target, grid)
    side = full.shape[-1] // 2
    return full.reshape(len(target), side, 2, side, 2).mean(axis=(2, 4))


def sample_labels(volume: PackedVolume, slices: np.ndarray, grid: torch.Tensor) -> np.ndarray:
    """Label values of slices, a quarter of the crop's resolution: (n, side / 4, side / 4)."""
    return sample(volume.label[slices], grid[:, 2::4, 2::4], nearest=True).astype(np.int64)


def _pixels(
    volume: PackedVolume,
    slices: np.ndarray,
    grid: torch.Tensor,
    rng: np.random.Generator,
    augmentation: AugmentationConfig,
) -> np.ndarray:
    """(n, 3, side, side) in [0, 1]: slices with their neighbours as channels, in one random contrast."""
    needed = np.clip(np.add.outer(slices, (-1, 0, 1)), 0, len(volume.image) - 1).ravel()
    images = sample(volume.image[needed], grid) / 255.0
    regions = np.zeros(images.shape, dtype=np.int32)
    if augmentation.recolour:
        chosen = volume.regions[rng.integers(len(volume.regions))][needed]
        regions = sample(chosen, grid, nearest=True).astype(np.int32)
        if volume.info.labels:
            organs = sample(volume.label[needed], grid, nearest=True).astype(np.int32)
            regions = np.where(organs > 0, organs + 65536, regions)
    return recoloured(images, regions, rng, augmentation).reshape(len(slices), 3, *images.shape[1:])
