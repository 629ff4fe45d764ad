"""From proposals on every slice to the target: which object it is, on which slices it is, and how good its mask is.

The volume head decides. What a person annotated stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.special import expit

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import EVEN, NOWHERE, OBJECTS, SegmentationConfig
from ssmsam.fewshot.estimate import SupportCheck
from ssmsam.fewshot.proposals import Proposals, confidence, expected_loss
from ssmsam.fewshot.slice_descriptors import Described, Surroundings, described
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_registry import load_volume_head
from ssmsam.models.volume_head import VolumeHead

_TOUCHING = np.ones((3, 3))


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
        one[first] = _largest_piece(left[first])
        one = _tracked(masks, one, first)
        found.append(one)
        left &= ~one
        evidence = np.where(one.any(axis=(1, 2)) | ~left.any(axis=(1, 2)), 0.0, evidence)
    return found


def _grown(masks: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """What hangs together with anchors: between them in both directions, beyond them outwards."""
    found = np.zeros_like(masks)
    for row in np.flatnonzero(anchors.any(axis=(1, 2))):
        found[row] = anchors[row] | _pieces_on(masks[row], anchors[row])
    for order in (range(1, len(masks)), range(len(masks) - 2, -1, -1)):
        step = 1 if order.step > 0 else -1
        for row in order:
            found[row] |= _pieces_on(masks[row], found[row - step])
    return found


def _tracked(masks: np.ndarray, found: np.ndarray, first: int) -> np.ndarray:
    """An object that begins on one row, on all the others."""
    for outwards, step in ((range(first + 1, len(masks)), 1), (range(first - 1, -1, -1), -1)):
        for row in outwards:
            found[row] = _pieces_on(masks[row], found[row - step])
            if not found[row].any():
                break
    return found


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces, _ = ndimage.label(mask, structure=_TOUCHING)
    return np.asarray(pieces == np.bincount(pieces[pieces > 0]).argmax())


def _pieces_on(mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The pieces of a mask (S, S) that overlap with another."""
    if not (mask & before).any():
        return np.zeros_like(mask)
    pieces, _ = ndimage.label(mask, structure=_TOUCHING)
    return np.isin(pieces, np.unique(pieces[mask & before]))


@dataclass(frozen=True, eq=False)
class Selected:
    """``proposals`` with what is not the target ruled out and ``presence`` (n,) by the volume head; the Dice in [0, 1]
    that is expected of each slice's mask (n,), ``dice``, and over all slices that nobody annotated, ``overall``."""

    proposals: Proposals
    dice: np.ndarray
    overall: float


def select(
    proposals: Proposals,
    task: AdaptedTask,
    label: str,
    query: VolumeEmbeddings,
    config: SegmentationConfig,
    *,
    clicked: Collection[int] = (),
) -> Selected:
    """What of the proposals for a label is the target. Masks on slices that were ``clicked`` on count as annotated."""
    bank = task.banks[label]
    among = candidates(proposals, bank, query, task.support_check(label), clicked=clicked)
    if not config.volume_head:
        return everything(proposals, among)
    return selected(proposals, load_volume_head(), among, several=not bank.in_one_piece, every_slice=config.every_slice)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The objects among proposals, masks (n, S, S) each, their descriptors and what is known around them; ``logits``
    (n, S, S) hold what was annotated."""

    objects: list[np.ndarray]
    described: Described | None
    around: Surroundings
    logits: np.ndarray


def candidates(
    proposals: Proposals,
    bank: SupportBank,
    query: VolumeEmbeddings,
    check: SupportCheck,
    *,
    clicked: Collection[int] = (),
) -> Candidates:
    """What the volume head judges. Masks on slices that were ``clicked`` on count as annotated."""
    logits = proposals.logits.copy()
    rows = {int(index): row for row, index in enumerate(proposals.slices)}
    annotated: dict[int, np.ndarray] = {}
    for index, number in bank.annotated_slices(query).items():
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
        check=check,
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
        return Selected(
            replace(proposals, logits=np.minimum(among.logits, NOWHERE), presence=presence), np.ones(count), 1.0
        )
    keep, dice, target, overall = judged(among.described, volume_head)
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
    asked = _past_the_ends(found, among, known)
    return Selected(replace(found, asked=asked), expected, float(overall[best]))


def everything(proposals: Proposals, among: Candidates) -> Selected:
    """All that was proposed, where nothing judges it."""
    drawn = (among.logits > 0).any(axis=(1, 2))
    dice = np.where(drawn, 1 - expected_loss(among.logits), 1.0)
    overall = float(dice[drawn].mean()) if drawn.any() else 1.0
    return Selected(replace(proposals, logits=among.logits), dice, overall)


def judged(described: Described, volume_head: VolumeHead) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the head says as probabilities and Dice in [0, 1]: (K, n), (K, n), (K,) and (K,), in the volume's order."""
    with torch.inference_mode():
        answers = volume_head(
            *(torch.from_numpy(one).float() for one in (described.slices, described.objects, described.drawn))
        )
    keep, dice, target, overall = (expit(one.double().numpy()) for one in vars(answers).values())
    return (keep[:, ::-1], dice[:, ::-1], target, overall) if described.backwards else (keep, dice, target, overall)


def ruled_out(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits (n, S, S) that are positive in a mask only. A cell around what is ruled out is so too: drawn on pixels,
    logits are interpolated."""
    dropped = (logits > 0) & ~mask
    if dropped.any():
        dropped |= ndimage.binary_dilation(dropped, np.ones((1, 3, 3))) & ~mask
    return np.where(dropped, np.minimum(logits, NOWHERE), logits)


def _past_the_ends(found: Proposals, among: Candidates, known: np.ndarray) -> tuple[int, ...]:
    """The first slice past each annotated end where the target was ruled out though something hangs together with it:
    whether it is still there should be asked."""
    seen = among.around.shows
    if not seen or not among.objects:
        return ()
    proposed, kept = among.objects[0].any(axis=(1, 2)), (found.logits > 0).any(axis=(1, 2))
    asked = []
    for outwards in (range(max(seen) + 1, len(kept)), range(min(seen) - 1, -1, -1)):
        first = next((row for row in outwards if not kept[row]), None)
        if first is not None and proposed[first] and not known[first] and not known[list(outwards)].any():
            asked.append(int(found.slices[first]))
    return tuple(asked)
