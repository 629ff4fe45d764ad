"""From proposals on every slice to the target: which object it is, on which slices it is, and how good its mask is.

The volume head decides. What a person annotated stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.special import expit, logit

from ssmsam import ops
from ssmsam.fewshot.atlas import Guide
from ssmsam.fewshot.config import EVEN, MOST_LOG, NEAR_MM, NOWHERE, OBJECTS
from ssmsam.fewshot.estimate import SupportCheck
from ssmsam.fewshot.proposals import Proposals, Target
from ssmsam.fewshot.support_bank import SupportBank, interpolated, signed_distance
from ssmsam.models.registry import load_volume_head
from ssmsam.models.volume_head import VolumeHead
from ssmsam.ops import largest_component, touching


def objects(masks: np.ndarray, evidence: np.ndarray, anchors: np.ndarray, *, most: int) -> list[np.ndarray]:
    """At most ``most`` objects among masks (n, S, S), each a mask of the same shape; they may share pieces.

    The first is what hangs together with the ``anchors`` (n, S, S), masks that are known to be the target, if there are
    any. The others begin with the largest piece on the slice with most ``evidence`` (n,) that no object has yet.
    Outwards from where it begins, an object has on every slice the pieces that overlap with it on the slice before.
    """
    found: list[np.ndarray] = []
    left, evidence = masks.copy(), np.where(masks.any(axis=(1, 2)), evidence, 0.0)
    anchored = anchors.any(axis=(1, 2))
    if anchored.any():
        found.append(_grown(masks, anchors))
        left &= ~found[0]
        evidence = np.where(left.any(axis=(1, 2)), evidence, 0.0)
    while len(found) < most and len(evidence) and evidence.max() > 0:
        first = int(evidence.argmax())
        one = np.zeros_like(masks)
        one[first] = largest_component(left[first])
        one = _tracked(masks, one, first)
        found.append(one)
        left &= ~one
        evidence = np.where(one.any(axis=(1, 2)) | ~left.any(axis=(1, 2)), 0.0, evidence)
    return found


def _grown(masks: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """What hangs together with anchors: between them in both directions, beyond them outwards."""
    found = np.zeros_like(masks)
    for row in np.flatnonzero(anchors.any(axis=(1, 2))):
        found[row] = anchors[row] | touching(masks[row], anchors[row])
    for order in (range(1, len(masks)), range(len(masks) - 2, -1, -1)):
        step = 1 if order.step > 0 else -1
        for row in order:
            found[row] |= touching(masks[row], found[row - step])
    return found


def _tracked(masks: np.ndarray, found: np.ndarray, first: int) -> np.ndarray:
    """An object that begins on one row, on all the others."""
    for outwards, step in ((range(first + 1, len(masks)), 1), (range(first - 1, -1, -1), -1)):
        for row in outwards:
            found[row] = touching(masks[row], found[row - step])
            if not found[row].any():
                break
    return found


@dataclass(frozen=True, eq=False)
class Selected:
    """``proposals`` with what is not the target ruled out and ``presence`` (n,) by the volume head; the Dice in [0, 1]
    that is expected of each slice's mask (n,), ``dice``, and over all slices that nobody annotated, ``expected``;
    ``rank`` is greater of better proposals for the same volume."""

    proposals: Proposals
    dice: np.ndarray
    expected: float
    rank: float


def select_target(proposals: Proposals, target: Target, *, clicked: Collection[int] = ()) -> Selected:
    """What of the proposals is the target. Masks on slices that were ``clicked`` on count as annotated."""
    among = candidates(proposals, target, clicked=clicked)
    if not target.config.volume_head:
        return everything(proposals, among)
    several, every_slice = not target.bank.in_one_piece, target.config.every_slice
    return selected(proposals, load_volume_head(), among, several=several, every_slice=every_slice)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The objects among proposals, masks (n, S, S) each, their descriptors and what is known around them; ``logits``
    (n, S, S) hold what was annotated."""

    objects: list[np.ndarray]
    described: Described | None
    around: Surroundings
    logits: np.ndarray


def candidates(proposals: Proposals, target: Target, *, clicked: Collection[int] = ()) -> Candidates:
    """What the volume head judges. Masks on slices that were ``clicked`` on count as annotated."""
    bank, query, logits = target.bank, target.query, proposals.logits.copy()
    rows = {int(index): row for row, index in enumerate(proposals.slices)}
    annotated: dict[int, np.ndarray] = {}
    for index, number in target.annotated.items():
        if index in rows:
            row, distance = rows[index], bank.distances[number]
            logits[row] = np.where(distance == 0, logits[row], distance)
            if (distance > 0).any() or (distance != 0).all():
                annotated[row] = distance > 0
    for row in (rows[index] for index in clicked if index in rows):
        annotated[row] = logits[row] > 0
    side = logits.shape[-1]
    around = Surroundings(
        positions=np.array([query.position_mm(int(index)) for index in proposals.slices]),
        slice_mm=query.slice_mm,
        cell_mm=query.frame.input_mm * query.frame.size / side,
        annotated=annotated,
        atlas=proposals.guide,
        check=target.task.support_check(target.label),
        volume=query.key.digest,
    )
    anchors = np.zeros(logits.shape, dtype=bool)
    for row, mask in annotated.items():
        anchors[row] = mask
    held = replace(proposals, logits=logits)
    found = objects(logits > 0, confidence(logits, proposals.presence), anchors, most=OBJECTS)
    return Candidates(found, described(held, found, bank, around) if found else None, around, logits)


def selected(
    proposals: Proposals, volume_head: VolumeHead, among: Candidates, *, several: bool, every_slice: bool = False
) -> Selected:
    """The target among candidates: the object that is most likely it, and where it may be in ``several`` pieces all
    that are more likely it than not; of each the slices that more likely are the target's than not, or all where it is
    known to be on ``every_slice``."""
    count = len(proposals.slices)
    # where nothing is drawn the target may have been missed
    presence = np.minimum(proposals.presence, EVEN).astype(float)
    for row, mask in among.around.annotated.items():
        presence[row] = float(mask.any())
    if among.described is None:
        # nothing is right where the target is nowhere, and all wrong where it was missed
        missed = float(presence.max(initial=0.0, where=~np.isin(np.arange(count), list(among.around.annotated))))
        empty = replace(proposals, logits=np.minimum(among.logits, NOWHERE), presence=presence)
        return Selected(empty, np.ones(count), 1 - missed, 1 - missed)
    keep, dice, target, rank, overall = judged(among.described, volume_head)
    drawn_on = [one.any(axis=(1, 2)) for one in among.objects]
    best = int(target.argmax())
    chosen = [n for n in range(len(target)) if n == best or (several and target[n] > EVEN)]
    mask, sure, expected = np.zeros(among.logits.shape, dtype=bool), np.zeros(count), np.zeros(count)
    known = np.isin(np.arange(count), list(among.around.annotated))
    for n in chosen:
        kept = (keep[n] > EVEN) | known | every_slice
        mask |= among.objects[n] & kept[:, None, None]
        sure = np.maximum(sure, np.where(drawn_on[n], keep[n], 0.0))
        expected = np.maximum(expected, np.where(drawn_on[n], dice[n], 0.0))
    presence = np.where(np.any([drawn_on[n] for n in chosen], axis=0) & ~known, sure, presence)
    for row, drawn in among.around.annotated.items():
        mask[row] = drawn
        expected[row] = 1.0
    found = replace(proposals, logits=ruled_out(among.logits, mask), presence=presence)
    ends = _past_the_ends(found, among, known)
    return Selected(replace(found, open_ends=ends), expected, float(overall[best]), float(rank[best]))


def everything(proposals: Proposals, among: Candidates) -> Selected:
    """All that was proposed, where nothing judges it."""
    drawn = (among.logits > 0).any(axis=(1, 2))
    dice = np.where(drawn, 1 - expected_loss(among.logits), 1.0)
    overall = float(dice[drawn].mean()) if drawn.any() else 1.0
    return Selected(replace(proposals, logits=among.logits), dice, overall, overall)


def judged(described: Described, volume_head: VolumeHead) -> tuple[np.ndarray, ...]:
    """What the head says, a :class:`Judgement` in probabilities and Dice in [0, 1] and in the volume's order."""
    with torch.inference_mode():
        answers = volume_head(
            *(torch.from_numpy(one).float() for one in (described.slices, described.objects, described.drawn))
        )
    found = [expit(one.double().numpy()) for one in vars(answers).values()]
    return tuple(one[:, ::-1] if one.ndim == 2 and described.backwards else one for one in found)


def ruled_out(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits (n, S, S) that are positive in a mask only. A cell around what is ruled out is so too: drawn on pixels,
    logits are interpolated."""
    dropped = (logits > 0) & ~mask
    if dropped.any():
        dropped |= ndimage.binary_dilation(dropped, np.ones((1, 3, 3))) & ~mask
    return np.where(dropped, np.minimum(logits, NOWHERE), logits)


def _past_the_ends(found: Proposals, among: Candidates, known: np.ndarray) -> tuple[int, ...]:
    """The first slice past each annotated end on which what hangs together with the target was ruled out."""
    seen = among.around.shows
    if not seen or not among.objects:
        return ()
    proposed, kept = among.objects[0].any(axis=(1, 2)), (found.logits > 0).any(axis=(1, 2))
    open_ends = []
    for outwards in (range(max(seen) + 1, len(kept)), range(min(seen) - 1, -1, -1)):
        first = next((row for row in outwards if not kept[row]), None)
        if first is not None and proposed[first] and not known[first] and not known[list(outwards)].any():
            open_ends.append(int(found.slices[first]))
    return tuple(open_ends)


# what the volume head reads: a few numbers for each slice and for the whole. All are free of units of one modality or
# organ: areas are compared with annotated ones, probabilities are log odds, lengths are in millimetres


def cell_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits -> the probability of each cell, where the target is on the slice at all."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))


def confidence(logits: np.ndarray, presence: np.ndarray) -> np.ndarray:
    """What speaks for the target on each slice (n,): it is there, and its mask is sure of itself. 0 without a mask."""
    return np.asarray(presence * (1 - expected_loss(logits)) * (logits > 0).any(axis=(1, 2)))


def expected_loss(logits: np.ndarray) -> np.ndarray:
    """1 - the Dice that a mask expects of itself when every cell is right with its own probability: (n, S, S) -> (n,).

    0 for a slice that is surely empty.
    """
    probability = cell_probabilities(logits)
    chosen = probability > 0.5
    overlap = 2 * (probability * chosen).sum(axis=(1, 2)) + 1e-6
    return 1 - overlap / (probability.sum(axis=(1, 2)) + chosen.sum(axis=(1, 2)) + 1e-6)


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
        np.zeros(len(mask)) if shapes is None else ops.dice(mask, shapes, axis=(-2, -1), both_empty=0.0),
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
    return [ops.dice(mask, propagated, axis=(-2, -1), both_empty=0.0), size / max(float(size.max()), 1.0), trusted]


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


def _odds(probability: np.ndarray | float) -> np.ndarray:
    """Log odds, in [-1, 1] for what is more than a guess."""
    return np.asarray(logit(np.clip(probability, 0.018, 0.982)) / MOST_LOG)


def _ratio(value: np.ndarray | float, usual: np.ndarray | float) -> np.ndarray:
    """Logarithm of a ratio, bounded."""
    return np.clip(np.log(np.maximum(value, 1e-3) / np.maximum(usual, 1e-3)), -MOST_LOG, MOST_LOG) / 2
