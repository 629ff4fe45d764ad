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
from ssmsam.fewshot.estimate import SupportCheck
from ssmsam.fewshot.proposals import NOWHERE, Proposals, confidence, expected_loss
from ssmsam.fewshot.slice_descriptors import Described, Surroundings, described
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.volume_head import VolumeHead
from ssmsam.ops import largest_component, touching


def objects(masks: np.ndarray, evidence: np.ndarray, anchors: np.ndarray, *, most: int) -> list[np.ndarray]:
    """At most ``most`` objects among masks (n, S, S), each a mask of the same shape; they may share pieces.

    The first is what hangs together with the ``anchors`` (n, S, S), masks that are known to be the target, if there are
    any. The others begin with the largest piece on the slice with most ``evidence`` (n,) that no object has yet.
    Outwards from where it begins, an object has on every slice the pieces that overlap with it on the slice before.
    """
    found: list[np.ndarray] = []
    left, shown = masks.copy(), np.where(masks.any(axis=(1, 2)), evidence, 0.0)
    anchored = anchors.any(axis=(1, 2))
    if anchored.any():
        found.append(_grown(masks, anchors))
        left &= ~found[0]
        shown = np.where(left.any(axis=(1, 2)), shown, 0.0)
    while len(found) < most and len(shown) and shown.max() > 0:
        start = int(shown.argmax())
        one = np.zeros_like(masks)
        one[start] = largest_component(left[start])
        one = _followed(masks, one, start)
        found.append(one)
        left &= ~one
        shown = np.where(one.any(axis=(1, 2)) | ~left.any(axis=(1, 2)), 0.0, shown)
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


def _followed(masks: np.ndarray, found: np.ndarray, start: int) -> np.ndarray:
    """An object that begins on one row, on all the others."""
    for outwards, step in ((range(start + 1, len(masks)), 1), (range(start - 1, -1, -1), -1)):
        for row in outwards:
            found[row] = touching(masks[row], found[row - step])
            if not found[row].any():
                break
    return found


OBJECTS = 4
"""So many objects are judged: a guess."""
EVEN = 0.5
"""What is more likely the target than not is kept."""


@dataclass(frozen=True, eq=False)
class Selected:
    """``proposals`` with what is not the target ruled out and ``presence`` (n,) by the volume head; the Dice in [0, 1]
    that is expected of each slice's mask (n,), ``dice``, and over all slices that nobody annotated, ``overall``."""

    proposals: Proposals
    dice: np.ndarray
    overall: float


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
    for number in bank.annotated(query.key.digest):
        row = rows.get(query.index_at(bank.positions[number]))
        if row is not None:
            distance = bank.distances[number]
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
    proposals: Proposals, head: VolumeHead, among: Candidates, *, several: bool, every_slice: bool = False
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
    keep, dice, target, overall = judged(among.described, head)
    shown = [one.any(axis=(1, 2)) for one in among.objects]
    best = int(target.argmax())
    chosen = [n for n in range(len(target)) if n == best or (several and target[n] > EVEN)]
    mask, sure, expected = np.zeros(among.logits.shape, dtype=bool), np.zeros(count), np.zeros(count)
    known = np.isin(np.arange(count), list(among.around.annotated))
    for n in chosen:
        kept = (keep[n] > EVEN) | known | every_slice
        mask |= among.objects[n] & kept[:, None, None]
        sure = np.maximum(sure, np.where(shown[n], keep[n], 0.0))
        expected = np.maximum(expected, np.where(shown[n], dice[n], 0.0))
    drawn_on = np.any([shown[n] for n in chosen], axis=0)
    presence = np.where(drawn_on & ~known, sure, presence)
    for row, drawn in among.around.annotated.items():
        mask[row] = drawn
        expected[row] = 1.0
    found = replace(proposals, logits=ruled_out(among.logits, mask), presence=presence)
    asked = _past_the_ends(found, among, known)
    return Selected(replace(found, asked=asked), expected, float(overall[best]))


def everything(proposals: Proposals, among: Candidates) -> Selected:
    """All that was proposed, where nothing judges it."""
    shown = (among.logits > 0).any(axis=(1, 2))
    dice = np.where(shown, 1 - expected_loss(among.logits), 1.0)
    overall = float(dice[shown].mean()) if shown.any() else 1.0
    return Selected(replace(proposals, logits=among.logits), dice, overall)


def judged(described: Described, head: VolumeHead) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the head says as probabilities and Dice in [0, 1]: (K, n), (K, n), (K,) and (K,), in the volume's order."""
    with torch.inference_mode():
        said = head(*(torch.from_numpy(one).float() for one in (described.slices, described.objects, described.shown)))
    keep, dice, target, overall = (expit(one.double().numpy()) for one in vars(said).values())
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
