"""What the volume head is told of objects among a volume's proposals: a few numbers for each slice and for the whole.

All are free of units of one modality or organ: areas are compared with annotated ones, probabilities are log odds,
lengths are in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logit

from ssmsam.fewshot.atlas import Guide
from ssmsam.fewshot.config import MOST_LOG, NEAR_MM
from ssmsam.fewshot.estimate import SupportCheck
from ssmsam.fewshot.priors import interpolated, signed_distance
from ssmsam.fewshot.proposals import Proposals, cell_probabilities
from ssmsam.fewshot.support_bank import SupportBank


@dataclass(frozen=True, eq=False)
class Described:
    """Of K objects on n slices, in the order of their positions: ``slices`` (K, n, SLICE_DESCRIPTORS), ``objects``
    (K, OBJECT_DESCRIPTORS) and ``drawn`` (K, n), whether the object has a mask. ``backwards``: the volume is stored the
    other way round."""

    slices: np.ndarray
    objects: np.ndarray
    drawn: np.ndarray
    backwards: bool = False


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What is known of a volume beside the proposals: ``positions`` (n,) of the slices in mm, the side of a cell, what
    was annotated in this volume (row -> mask (S, S), empty where it is known to be absent), what registered volumes
    say, and how the decoder does on the labelled slices."""

    positions: np.ndarray
    slice_mm: float
    cell_mm: float
    annotated: dict[int, np.ndarray]
    atlas: Guide | None
    check: SupportCheck
    volume: str = ""
    """As banks call it."""

    @property
    def shows(self) -> list[int]:
        """The annotated rows that show the target, ascending."""
        return sorted(row for row, mask in self.annotated.items() if mask.any())

    @property
    def empty(self) -> list[int]:
        """The annotated rows that do not, ascending."""
        return sorted(row for row, mask in self.annotated.items() if not mask.any())

    def turned(self) -> Surroundings:
        """The same of the slices in reverse order."""
        last, atlas = len(self.positions) - 1, self.atlas
        return replace(
            self,
            positions=self.positions[::-1],
            annotated={last - row: mask for row, mask in self.annotated.items()},
            atlas=atlas and replace(atlas, distances=atlas.distances[::-1], trust=atlas.trust[::-1]),
        )


def described(
    proposals: Proposals, objects: Sequence[np.ndarray], bank: SupportBank, around: Surroundings
) -> Described:
    """The descriptors of objects (n, S, S) among proposals. They are the same however the volume is stored."""
    backwards = len(around.positions) > 1 and around.positions[0] > around.positions[-1]
    if backwards:
        around, objects = around.turned(), [one[::-1] for one in objects]
        turned = {name: getattr(proposals, name)[::-1] for name in ("slices", "logits", "presence", "descriptors")}
        proposals = replace(proposals, **turned)
    common, shapes = _of_slices(proposals, bank, around), _between(around, proposals.logits.shape)
    areas = np.stack([one.sum(axis=(1, 2)) for one in objects]) * around.cell_mm**2
    probable, usual = cell_probabilities(proposals.logits), _usual_area(bank, around)
    slices = np.stack(
        [
            np.concatenate([common, _of_masks(proposals.logits, probable, one, usual, shapes, around)], axis=1)
            for one in objects
        ]
    )
    whole = np.stack([_of_object(n, areas, proposals, objects, bank, around) for n in range(len(objects))])
    return Described(slices.astype(np.float32), whole.astype(np.float32), areas > 0, bool(backwards))


def _of_slices(proposals: Proposals, bank: SupportBank, around: Surroundings) -> np.ndarray:
    """(n, 12) what does not depend on the object."""
    # pseudo-labels in this volume are not known
    counted = ~(bank.pseudo_labelled & (np.array(bank.volumes) == around.volume))
    alike = proposals.descriptors @ bank.descriptors.cpu().numpy().T
    like, unlike = (_greatest(alike[:, some & counted]) for some in (bank.shows, ~bank.shows))
    place, rows = around.positions, np.arange(len(around.positions))
    seen, empty = place[around.shows], place[around.empty]
    below, above = (_closeness(place, seen, side) for side in (-1, 1))
    check = around.check
    usual = 0.0 if check.presence is None else _odds(check.presence)
    return np.stack(
        [
            _odds(proposals.presence),
            _odds(proposals.presence) - usual,
            like,
            unlike,
            below,
            above,
            (below > 0) & (above > 0),
            _ended(place, seen, empty),
            np.isin(rows, around.shows),
            np.isin(rows, around.empty),
            np.full(len(place), around.slice_mm / 10),
            np.linspace(-1, 1, len(place)) if len(place) > 1 else np.zeros(1),
        ],
        axis=1,
    ).astype(np.float64)


def _of_masks(
    logits: np.ndarray,
    probable: np.ndarray,
    mask: np.ndarray,
    usual_mm2: float,
    shapes: np.ndarray | None,
    around: Surroundings,
) -> np.ndarray:
    """(n, 15) what depends on the object's masks (n, S, S). ``probable`` (n, S, S) are the ``logits`` as probabilities,
    ``shapes`` those of :func:`_between`."""
    area = mask.sum(axis=(1, 2))
    there = area > 0
    own = np.where(mask | (logits <= 0), probable, 0.0).sum(axis=(1, 2))
    inside = (probable * mask).sum(axis=(1, 2))
    all_of_it = (logits > 0).sum(axis=(1, 2))
    columns = [
        there,
        2 * inside / np.maximum(own + area, 1e-6) * there,
        _ratio(area * around.cell_mm**2, usual_mm2) * there,
        np.where(there, (np.clip(logits, -10, 10) * mask).sum(axis=(1, 2)) / np.maximum(area, 1), 0.0) / 5,
        area / np.maximum(all_of_it, 1),
        _overlap(mask, np.roll(mask, 1, axis=0)) * (np.arange(len(mask)) > 0),
        _overlap(mask, np.roll(mask, -1, axis=0)) * (np.arange(len(mask)) < len(mask) - 1),
        *_beside_annotated(mask, area, around),
        *_beside_atlas(mask, around),
        np.zeros(len(mask)) if shapes is None else _dice(mask, shapes),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _beside_annotated(mask: np.ndarray, area: np.ndarray, around: Surroundings) -> list[np.ndarray]:
    """Overlap with the nearest annotated mask and the ratio of areas, how fast the target shrinks past its annotated
    end, and how far past it a slice is."""
    seen = around.shows
    overlap, ratio, shrinks, past = (np.zeros(len(mask)) for _ in range(4))
    if not seen:
        return [overlap, ratio, shrinks, past]
    for row in range(len(mask)):
        near = min(seen, key=lambda one: abs(around.positions[one] - around.positions[row]))
        last = around.annotated[near]
        if area[row]:
            overlap[row] = _overlap(mask[row], last)
            ratio[row] = _ratio(area[row], float(last.sum()))
        away = abs(around.positions[row] - around.positions[near])
        if (row < seen[0] or row > seen[-1]) and len(seen) > 1:
            past[row] = away / NEAR_MM
            before = seen[1] if near == seen[0] else seen[-2]
            gap = max(abs(around.positions[near] - around.positions[before]), 0.1)
            radius, wider = np.sqrt(last.sum()), np.sqrt(around.annotated[before].sum())
            slope = (wider - radius) / gap
            end_mm = radius / slope if slope > 1e-6 else 100.0  # mm: it is taken to go on far
            shrinks[row] = _ratio(min(end_mm, 100.0), max(away, 1e-3))
    return [overlap, ratio, shrinks, np.minimum(past, MOST_LOG)]


def _beside_atlas(mask: np.ndarray, around: Surroundings) -> list[np.ndarray]:
    """Dice with the propagated mask, how large that is, and how far it is trusted."""
    if around.atlas is None:
        return [np.zeros(len(mask)) for _ in range(3)]
    propagated, trust = around.atlas.distances > 0, around.atlas.trust
    size = propagated.sum(axis=(1, 2))
    trusted = (trust * propagated).sum(axis=(1, 2)) / np.maximum(size, 1)
    return [_dice(mask, propagated), size / max(float(size.max()), 1.0), trusted]


def _between(around: Surroundings, shape: tuple[int, ...]) -> np.ndarray | None:
    """The interpolated shapes (n, S, S) bool from the first annotated slice that shows the target to the last, empty
    elsewhere; None without any."""
    known = {float(around.positions[row]): signed_distance(around.annotated[row]) for row in around.shows}
    if not known:
        return None
    found = np.zeros(shape, dtype=bool)
    for row in range(around.shows[0], around.shows[-1] + 1):
        found[row] = interpolated(known, float(around.positions[row]), (shape[1], shape[2])).distance > 0
    return found


def _of_object(
    number: int,
    areas: np.ndarray,
    proposals: Proposals,
    objects: Sequence[np.ndarray],
    bank: SupportBank,
    around: Surroundings,
) -> np.ndarray:
    """(OBJECT_DESCRIPTORS,) of one of K objects with ``areas`` (K, n) in mm2."""
    area, mask = areas[number], objects[number]
    there = area > 0
    seen = around.shows
    anchored = sum(bool((mask[row] & around.annotated[row]).any()) for row in seen) / max(1, len(seen))
    volumes = area.sum() * around.slice_mm
    length = there.sum() * around.slice_mm
    others = [
        k
        for k in range(len(bank))
        if bank.shows[k] and not (bank.pseudo_labelled[k] and bank.volumes[k] == around.volume)
    ]
    spans = [
        np.ptp([bank.positions[k] for k in others if bank.volumes[k] == one])
        for one in {bank.volumes[k] for k in others}
    ]
    span = float(np.mean(spans)) if spans else 0.0
    apart, near, likely = 0.0, 0.0, 0.0
    if around.atlas is not None:
        propagated, likely = around.atlas.distances > 0, around.atlas.likelihood
        near = 2 * float((mask & propagated).sum()) / max(1, int(mask.sum() + propagated.sum()))
        if propagated.any() and mask.any():
            step = np.array([around.slice_mm, around.cell_mm, around.cell_mm])
            apart = float(np.linalg.norm((np.argwhere(mask).mean(0) - np.argwhere(propagated).mean(0)) * step))
    check = around.check
    sure = proposals.presence * there
    return np.array(
        [
            np.log1p(len(seen)),
            float(around.atlas is not None),
            check.dice or 0.0,
            float(check.dice is not None),
            _odds(check.presence) if check.presence is not None else 0.0,
            _odds(check.absence) if check.absence is not None else 0.0,
            float(check.absence is not None),
            number,
            anchored,
            areas[number].sum() / max(float(areas.max(axis=0).sum()), 1e-6),
            _ratio(volumes, float(areas.sum(axis=1).max()) * around.slice_mm),
            _ratio(length, span) if span > 0 else 0.0,
            near,
            min(apart / 50, MOST_LOG),
            likely,
            float(sure.max()) if len(sure) else 0.0,
            np.log1p(len({bank.volumes[k] for k in others})),
        ]
    )


def _usual_area(bank: SupportBank, around: Surroundings) -> float:
    """Mean area in mm2 of the annotated cross-sections, of this volume's where there are any."""
    own = [float(mask.sum()) * around.cell_mm**2 for mask in around.annotated.values() if mask.any()]
    rows = np.flatnonzero(bank.shows & ~bank.pseudo_labelled)
    elsewhere = [(bank.distances[k] > 0).sum() * bank.cell_mm[k] ** 2 for k in rows]
    return float(np.mean(own or elsewhere or [around.cell_mm**2]))


def _closeness(place: np.ndarray, seen: np.ndarray, side: int) -> np.ndarray:
    """(n,) in [0, 1]: how close the nearest annotated slice on one side is, 0 without any."""
    if not len(seen):
        return np.zeros(len(place))
    away = side * (seen[None] - place[:, None])
    nearest = np.where(away >= 0, away, np.inf).min(axis=1)
    return np.where(np.isfinite(nearest), np.exp(-nearest / NEAR_MM), 0.0)


def _ended(place: np.ndarray, seen: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """(n,) bool: whether an empty slice lies between a slice and the nearest annotated one that shows the target."""
    if not len(seen) or not len(empty):
        return np.zeros(len(place), dtype=bool)
    near = seen[np.abs(seen[None] - place[:, None]).argmin(axis=1)]
    low, high = np.minimum(near, place), np.maximum(near, place)
    return np.asarray(((empty[None] >= low[:, None]) & (empty[None] <= high[:, None])).any(axis=1))


def _greatest(alike: np.ndarray) -> np.ndarray:
    return alike.max(axis=1) if alike.shape[1] else np.zeros(len(alike))


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU over the last two axes, 0 of two empty masks."""
    both, either = (one & other).sum(axis=(-2, -1)), (one | other).sum(axis=(-2, -1))
    return np.asarray(both / np.maximum(either, 1))


def _dice(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Dice over the last two axes, 0 of two empty masks."""
    areas = one.sum(axis=(-2, -1)) + other.sum(axis=(-2, -1))
    return np.asarray(2 * (one & other).sum(axis=(-2, -1)) / np.maximum(areas, 1))


def _odds(probability: np.ndarray | float) -> np.ndarray:
    """Log odds, in [-1, 1] for what is more than a guess."""
    return np.asarray(logit(np.clip(probability, 0.018, 0.982)) / MOST_LOG)


def _ratio(value: np.ndarray | float, usual: np.ndarray | float) -> np.ndarray:
    """Logarithm of a ratio, bounded."""
    return np.clip(np.log(np.maximum(value, 1e-3) / np.maximum(usual, 1e-3)), -MOST_LOG, MOST_LOG) / 2
