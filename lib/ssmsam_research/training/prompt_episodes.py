"""Episodes: pairs of slices of one volume with targets on both, the material of every training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import ndimage
from torch.utils.data import IterableDataset

from ssmsam.models.encoder import Embedding, take
from ssmsam.models.prompt_small import (
    CLOSENESS_MM,
    LEAST_POINTS,
    LOGITS_STRIDE,
    Answer,
    PointKind,
    Prompts,
    SmallPromptNetwork,
    describe_target,
)
from ssmsam_research.training.augmentation import AugmentationConfig, crop_grid, recoloured, sample
from ssmsam_research.training.groups import GroupBatch, Groups
from ssmsam_research.training.pack import SIZE, PackedVolume


def to_input(xy: np.ndarray) -> np.ndarray:
    """Positions on the grid of logits -> input pixels."""
    return (np.asarray(xy, dtype=np.float64) + 0.5) * LOGITS_STRIDE - 0.5


def click_inside(area: np.ndarray, rng: np.random.Generator, *, centred: float = 0.5) -> np.ndarray | None:
    """A position (x, y) on the grid of logits in a boolean area, at its innermost pixel with chance ``centred``."""
    if not area.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(area, 1))[1:-1, 1:-1]
    if rng.random() < centred:
        y, x = np.unravel_index(depth.argmax(), depth.shape)
    else:
        ys, xs = np.nonzero(depth > rng.uniform(0, 0.6) * depth.max())
        pick = rng.integers(len(xs))
        y, x = ys[pick], xs[pick]
    return np.array([x, y], dtype=np.float64) + rng.uniform(-0.4, 0.4, 2)


def draw_box(area: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A box around the area as a hurried user draws it: (2, 2) corners on the grid of logits."""
    y, x = np.nonzero(area)
    size = max(np.ptp(x), np.ptp(y)) + 1
    slack = rng.normal(0.02 * size, 0.05 * size + 0.5, 4).clip(-0.1 * size, 0.2 * size)
    corners = [[x.min() - slack[0], y.min() - slack[1]], [x.max() + slack[2], y.max() + slack[3]]]
    return np.clip(corners, 0, max(area.shape) - 1)


def correction(truth: np.ndarray, answer: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, PointKind] | None:
    """A click on the larger kind of error between two boolean masks, None when they are equal."""
    missed, extra = truth & ~answer, answer & ~truth
    kind, area = (PointKind.POSITIVE, missed) if missed.sum() >= extra.sum() else (PointKind.NEGATIVE, extra)
    parts, count = ndimage.label(area)
    if not count:
        return None
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    position = click_inside(parts == largest, rng, centred=0.6)
    return None if position is None else (position, kind)


def neighbouring(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the slice beside a target (S, S) might hold of it: moved, larger or smaller, bent. Never empty."""
    y, x = np.nonzero(truth)
    size = np.sqrt(len(x))
    bend = ndimage.gaussian_filter(rng.standard_normal((2, *truth.shape)), (0, 0.3 * size + 2, 0.3 * size + 2))
    bend *= rng.uniform(0, 0.12) * size / max(bend.std(), 1e-9)
    centre = np.array([y.mean(), x.mean()])[:, None, None]
    place = (np.indices(truth.shape) - centre) / rng.uniform(0.8, 1.2) + centre
    moved = place + bend + rng.normal(0, 0.06 * size, 2)[:, None, None]
    beside: np.ndarray = ndimage.map_coordinates(truth.astype(np.uint8), moved, order=0) > 0
    return beside if beside.any() else truth


class SparsePrompts:
    """The growing list of points of N targets, as padded tensors."""

    def __init__(self, count: int, slots: int) -> None:
        self.points = torch.zeros(count, slots, 2)
        self.kinds = torch.zeros(count, slots, dtype=torch.long)
        self._used = np.zeros(count, dtype=int)

    def add(self, index: int, position: np.ndarray, kind: PointKind) -> None:
        """Append a point at a position on the grid of logits."""
        slot = self._used[index]
        self.points[index, slot] = torch.from_numpy(to_input(position)).float()
        self.kinds[index, slot] = int(kind)
        self._used[index] += 1

    def first(self, index: int, area: np.ndarray, rng: np.random.Generator) -> None:
        """How a user begins: a click (70 %), a box (18 %), or both (12 %)."""
        way = rng.random()
        if way < 0.82:
            position = click_inside(area, rng)
            if position is not None:
                self.add(index, position, PointKind.POSITIVE)
        if way >= 0.7 and area.any():
            corners = draw_box(area, rng)
            self.add(index, corners[0], PointKind.BOX_TOP_LEFT)
            self.add(index, corners[1], PointKind.BOX_BOTTOM_RIGHT)


def play_rounds(
    network: SmallPromptNetwork, embedding: Embedding, batch: EpisodeBatch, rng: np.random.Generator, rounds: int
) -> Iterator[tuple[Answer, torch.Tensor]]:
    """Yield, round after round, the answers and (N,) where the presence was to be judged without a click."""
    query = take(embedding, batch.query)
    truth = batch.target[:, 0].cpu().numpy() > 0.5
    sparse = SparsePrompts(len(truth), max(LEAST_POINTS, rounds + 3))
    for index in torch.nonzero(~batch.by_neighbour.cpu()).flatten().tolist():
        sparse.first(index, truth[index], rng)
    prompts = _neighbour_prompts(embedding, batch)
    for turn in range(rounds):
        device = batch.target.device
        prompts = replace(prompts, points=sparse.points.clone().to(device), kinds=sparse.kinds.clone().to(device))
        answer = network(query, prompts)
        clicked = ((sparse.kinds == PointKind.POSITIVE) | (sparse.kinds == PointKind.BOX_TOP_LEFT)).any(1)
        yield answer, (~clicked).float().to(device)
        if turn + 1 == rounds:
            return
        chosen = answer.quality.argmax(1)
        previous = answer.logits.detach()[torch.arange(len(chosen), device=device), chosen][:, None]
        _correct(sparse, truth, previous[:, 0].cpu().numpy() > 0, rng)
        prompts = replace(prompts, previous=previous)


def _neighbour_prompts(embedding: Embedding, batch: EpisodeBatch) -> Prompts:
    """Dense prompts before any click: the support's mask where the target is prompted by it."""
    given = batch.by_neighbour.float()
    mask = batch.support_mask
    targets = describe_target(embedding["image"][batch.support], mask) * given[:, None, None]
    return Prompts(
        points=mask.new_zeros(len(mask), 0, 2),
        kinds=torch.zeros(len(mask), 0, dtype=torch.long, device=mask.device),
        previous=torch.zeros_like(mask),
        neighbour=(mask * 2 - 1) * given[:, None, None, None],
        closeness=torch.exp(-batch.distance_mm.float() / CLOSENESS_MM) * given,
        targets=targets,
    )


def _correct(sparse: SparsePrompts, truth: np.ndarray, answer: np.ndarray, rng: np.random.Generator) -> None:
    for index in range(len(truth)):
        click = correction(truth[index], answer[index], rng)
        if click is not None:
            sparse.add(index, *click)


class Mixture(IterableDataset["EpisodeBatch | GroupBatch"]):
    """An endless, seeded stream; every worker process draws its own. ``group_share`` of the batches are groups."""

    def __init__(self, *, episodes: Episodes, groups: Groups, group_share: float, seed: int) -> None:
        self.episodes = episodes
        self.groups = groups
        self.group_share = group_share
        self.seed = seed

    def __iter__(self) -> Iterator[EpisodeBatch | GroupBatch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        clicked = self.episodes.stream(rng)
        while True:
            yield self.groups.draw(rng) if rng.random() < self.group_share else next(clicked)


@dataclass(frozen=True)
class EpisodeConfig:
    """How pairs and targets are drawn. Lengths in input pixels unless the name says millimetres."""

    pairs: int = 4
    """Pairs of slices in a batch of the smallest side; larger crops come in fewer pairs, at about the same cost."""
    targets: int = 2
    """Targets drawn for each pair, each asked for on one of its two slices."""
    sides: tuple[int, ...] = (128,)
    """Sides of crops, multiples of 16; a batch has one of them, drawn at random. SIZE sees whole slices."""
    organ_share: float = 0.7
    """Share of targets that are labelled organs where a volume has labels; the others are regions."""
    organ_size_power: float = 0.33
    """Organs are drawn by their volume to this power: 0 all alike, 1 in proportion."""
    organ_neighbour_share: float = 0.4
    """Share of organs prompted by the other slice's mask instead of a click or a box."""
    region_neighbour_share: float = 0.8
    """The same for regions: a neighbour's mask says how much is meant, one click on a region hardly does, and too
    many such riddles would teach the network that a click on an organ means a part of it."""
    end_share: float = 0.2
    """Share of organ pairs placed at the organ's last slice, so that the other slice may be without it."""
    reach_mm: float = 16.0
    """Largest distance between the slices of a pair; neighbouring slices are always allowed."""
    min_area: int = 24
    dataset_weights: dict[str, float] = field(default_factory=dict)
    """How often a dataset is drawn, relative to the others; 1 for those not named."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass(frozen=True, eq=False)
class EpisodeBatch:
    """P pairs with N targets; S = side / 2 is the resolution of masks.

    ``slices`` (2P, 3, side, side) in [0, 1], the two slices of a pair one after the other. For each target:
    ``query`` and ``support`` (N,) index the slices; ``target`` and ``support_mask`` (N, 1, S, S) in [0, 1];
    ``distance_mm`` (N,); ``by_neighbour`` (N,) bool: prompt with the support's mask instead of a click.
    """

    slices: torch.Tensor
    query: torch.Tensor
    support: torch.Tensor
    target: torch.Tensor
    support_mask: torch.Tensor
    distance_mm: torch.Tensor
    by_neighbour: torch.Tensor

    def to(self, device: str) -> EpisodeBatch:
        """The same batch on another device."""
        return EpisodeBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class Episodes(IterableDataset[EpisodeBatch]):
    """An endless, seeded stream of :class:`EpisodeBatch`; every worker process draws its own."""

    def __init__(self, *, volumes: Sequence[PackedVolume], config: EpisodeConfig, seed: int) -> None:
        if not volumes:
            raise ValueError("episodes need at least one packed volume")
        self.volumes = list(volumes)
        self.config = config
        self.seed = seed

    def __iter__(self) -> Iterator[EpisodeBatch]:
        worker = torch.utils.data.get_worker_info()
        yield from self.stream(np.random.default_rng((self.seed, worker.id if worker else 0)))

    def stream(self, rng: np.random.Generator) -> Iterator[EpisodeBatch]:
        """The batches that a random generator leads to."""
        datasets = sorted({volume.info.dataset for volume in self.volumes})
        weights = np.array([self.config.dataset_weights.get(name, 1.0) for name in datasets])
        by_dataset = {name: [v for v in self.volumes if v.info.dataset == name] for name in datasets}
        while True:
            side = int(rng.choice(self.config.sides))
            pairs = max(1, round(self.config.pairs * (min(self.config.sides) / side) ** 2))
            names = rng.choice(datasets, size=pairs, p=weights / weights.sum())
            volumes = [by_dataset[name][rng.integers(len(by_dataset[name]))] for name in names]
            yield draw_batch(volumes, rng, self.config, side)


def draw_batch(
    volumes: Sequence[PackedVolume], rng: np.random.Generator, config: EpisodeConfig, side: int
) -> EpisodeBatch:
    """One pair from each volume, on crops of one side."""
    slices, rows = [], []
    for position, volume in enumerate(volumes):
        pair, targets = _draw_pair(volume, rng, config, side)
        slices.append(pair)
        rows += [(2 * position, target) for target in targets]
    query, support, target, support_mask, distance, by_neighbour = [], [], [], [], [], []
    for first, (masks, distance_mm, organ) in rows:
        asked = int(rng.integers(2))
        share = config.organ_neighbour_share if organ else config.region_neighbour_share
        neighbour = bool(rng.random() < share and masks[1 - asked].max() > 0.5)
        if not neighbour and masks[asked].max() <= 0.5:
            asked = 1 - asked
        query.append(first + asked)
        support.append(first + 1 - asked)
        target.append(masks[asked])
        support_mask.append(masks[1 - asked])
        distance.append(distance_mm)
        by_neighbour.append(neighbour)
    return EpisodeBatch(
        slices=torch.from_numpy(np.concatenate(slices)),
        query=torch.tensor(query),
        support=torch.tensor(support),
        target=torch.from_numpy(np.stack(target))[:, None],
        support_mask=torch.from_numpy(np.stack(support_mask))[:, None],
        distance_mm=torch.tensor(distance),
        by_neighbour=torch.tensor(by_neighbour),
    )


def _draw_pair(
    volume: PackedVolume, rng: np.random.Generator, config: EpisodeConfig, side: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, float, bool]]]:
    """Two slices (2, 3, side, side) and for each target: masks (2, S, S), distance in mm, whether it is an organ."""
    while True:
        drawn = _draw_target(volume, rng, config, slice(None), slice(None))
        first = None if drawn is None else _draw_slice(drawn[0], rng, config)
        if drawn is None or first is None:
            continue
        second, distance = _draw_partner(volume, first, rng, config)
        centre = _centre(drawn[0][first], rng, side)
        beside = [_draw_target(volume, rng, config, *_window(first, centre, side)) for _ in range(config.targets - 1)]
        grid = crop_grid(rng, centre, side, SIZE, config.augmentation)
        found = [(_crop_masks(each[0], (first, second), grid), each[1]) for each in (drawn, *beside) if each]
        kept = [(m, distance, organ) for m, organ in found if m.sum(axis=(1, 2)).max() >= config.min_area / 4]
        if kept:
            return _crop_images(volume, (first, second), grid, rng, config), kept


def _window(first: int, centre: tuple[float, float], side: int) -> tuple[slice, slice]:
    """The slice and the rows in which further targets are looked for, so that they lie on the crop."""
    reach = side / 3
    return slice(first, first + 1), slice(max(0, int(centre[1] - reach)), max(1, int(centre[1] + reach)))


def _draw_target(
    volume: PackedVolume, rng: np.random.Generator, config: EpisodeConfig, slices: slice, rows: slice
) -> tuple[np.ndarray, bool] | None:
    """A boolean target over the whole volume, (n, height, width), that occurs in the given slices and rows, and
    whether it is an organ."""
    organs = list(volume.info.labels.values())
    if organs and rng.random() < config.organ_share:
        if slices != slice(None):
            organs = [value for value in np.unique(volume.label[slices, rows]) if value in organs]
        return (volume.label == _draw_organ(volume, organs, rng, config), True) if organs else None
    regions = volume.regions[rng.integers(len(volume.regions))]
    half = slice(rows.start and rows.start // 2, rows.stop and (rows.stop + 1) // 2)
    seen = regions[slices, half] if slices != slice(None) else regions[rng.integers(len(regions))]
    names = np.unique(seen[seen > 0])
    return (regions == names[rng.integers(len(names))], False) if len(names) else None


def _draw_organ(volume: PackedVolume, organs: list[int], rng: np.random.Generator, config: EpisodeConfig) -> int:
    """A label value: larger organs more often, but by far less than they are larger."""
    sizes = np.bincount(volume.label[:, ::4, ::4].ravel(), minlength=256)[organs] + 1.0
    weights = sizes**config.organ_size_power
    return int(rng.choice(organs, p=weights / weights.sum()))


def _draw_slice(target: np.ndarray, rng: np.random.Generator, config: EpisodeConfig) -> int | None:
    areas = target.sum(axis=(1, 2)) * (SIZE // target.shape[-1]) ** 2
    found = np.flatnonzero(areas >= config.min_area)
    if not len(found):
        return None
    if rng.random() < config.end_share:
        return int(rng.choice([found[0], found[-1]]))
    return int(rng.choice(found))


def _draw_partner(
    volume: PackedVolume, first: int, rng: np.random.Generator, config: EpisodeConfig
) -> tuple[int, float]:
    """A slice within reach, either side, never the first itself unless the volume has a single slice."""
    reach = max(1, int(config.reach_mm // volume.info.slice_mm))
    step = int(rng.integers(1, reach + 1)) * int(rng.choice([-1, 1]))
    last = len(volume.image) - 1
    second = first + step if 0 <= first + step <= last else int(np.clip(first - step, 0, last))
    return second, abs(second - first) * volume.info.slice_mm


def _centre(mask: np.ndarray, rng: np.random.Generator, side: int) -> tuple[float, float]:
    """Where a crop's centre goes: near the target, but not so far out that most of the crop is outside the image."""
    y, x = np.nonzero(mask)
    factor = SIZE / mask.shape[-1]
    jitter = rng.normal(0, side / 8, 2)
    pick = rng.integers(len(x)) if rng.random() < 0.5 else None
    centre = (x[pick], y[pick]) if pick is not None else (x.mean(), y.mean())
    x0, y0 = np.clip(np.array(centre) * factor + jitter, 0.4 * side, SIZE - 0.4 * side)
    return float(x0), float(y0)


def _crop_masks(target: np.ndarray, slices: tuple[int, int], grid: torch.Tensor) -> np.ndarray:
    """(2, S, S) in [0, 1]: read at full resolution, then averaged over 2 x 2 pixels."""
    full = sample(target[list(slices)], grid)
    side = full.shape[-1] // 2
    return full.reshape(2, side, 2, side, 2).mean(axis=(2, 4))


def _crop_images(
    volume: PackedVolume, slices: tuple[int, int], grid: torch.Tensor, rng: np.random.Generator, config: EpisodeConfig
) -> np.ndarray:
    """(2, 3, side, side) in [0, 1]: both slices with their neighbours as channels, in one random contrast."""
    last = len(volume.image) - 1
    needed = [int(np.clip(k + step, 0, last)) for k in slices for step in (-1, 0, 1)]
    images = sample(volume.image[needed], grid) / 255.0
    chosen = volume.regions[rng.integers(len(volume.regions))][needed]
    regions = sample(chosen, grid, nearest=True).astype(np.int32)
    if volume.info.labels:
        organs = sample(volume.label[needed], grid, nearest=True).astype(np.int32)
        regions = np.where(organs > 0, organs + 65536, regions)
    return recoloured(images, regions, rng, config.augmentation).reshape(2, 3, *images.shape[1:])
