"""From the decoder's proposals on every slice to masks of a volume."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.fewshot.atlas import AtlasConfig, Guide
from ssmsam.fewshot.bank import Bank, BankConfig
from ssmsam.fewshot.closer import CloserConfig
from ssmsam.fewshot.continuation import ContinuationConfig, past_the_annotated
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.ends import EndsConfig, beyond_the_ends, object_at, one_object
from ssmsam.fewshot.expectation import ExpectationConfig, expected
from ssmsam.fewshot.likely_part import PartConfig, likely_part
from ssmsam.fewshot.proposals import Proposals, evidence, expected_loss, propose, sureness
from ssmsam.fewshot.self_support import SelfSupportConfig, surest, with_own, worth_another_look
from ssmsam.fewshot.support import Support
from ssmsam.progress import Progress, silent

_OUT = -30.0
"""Logits of cells that were ruled out."""
_NEIGHBOURS = np.ones((3, 3, 3))
_ONLY = ""
"""The name of a label that is looked at alone."""


@dataclass(frozen=True)
class SegmentationConfig:
    """How proposals become masks."""

    batch: int = 6
    least_presence: float | None = None
    """Slices on which the target is less probable than this stay empty; None takes each label's own threshold."""
    smooth_mm: float = 0.0
    """Standard deviation of the smoothing of logits across slices."""
    least_component: float = 0.1
    """Where no slice of the volume is annotated, of targets in several pieces: parts smaller than this share of the
    largest are dropped."""
    evidence_mm: float = 8.0
    """Where no slice of the volume is annotated: evidence for the target is averaged over so much of the volume
    (standard deviation), so that a chance hit on one slice is none."""
    least_evidence: float = 0.85
    """Completed slices are not heard where the best evidence with them is less than this share of that without."""
    beyond_doubt: float = 0.9
    """Elsewhere completed slices may rule a slice out; not on their own where the target is as probable as this."""
    ends: EndsConfig = field(default_factory=EndsConfig)
    continuation: ContinuationConfig | None = field(default_factory=ContinuationConfig)
    """None lets masks run past annotated ends wherever the decoder proposes any."""
    expectation: ExpectationConfig = field(default_factory=ExpectationConfig)
    part: PartConfig = field(default_factory=PartConfig)
    closer: CloserConfig | None = field(default_factory=CloserConfig)
    """None looks at no target in an enlarged window."""
    atlas: AtlasConfig | None = field(default_factory=AtlasConfig)
    """None registers no volume with another."""
    self_support: SelfSupportConfig = field(default_factory=SelfSupportConfig)
    bank: BankConfig = field(default_factory=BankConfig)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one volume.

    ``labels`` names the values 1, 2, ... of ``mask`` (slices, rows, columns) uint8, on the volume's own grid.
    ``slices`` (n,) were looked at, along the plane of work; for each of them and each label ``presence`` (labels, n)
    is the probability that the label is there and ``uncertainty`` (labels, n) the expected loss of Dice, both in
    [0, 1]. ``logits`` (labels, n, S, S) are in the encoder's frame. ``asked`` maps a label to the slices just past
    its annotated ends where something was proposed and left out: a person should say whether it is still there.
    """

    labels: tuple[str, ...]
    mask: np.ndarray
    slices: np.ndarray
    presence: np.ndarray
    uncertainty: np.ndarray
    logits: np.ndarray
    asked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def looked_at_again(
    proposals: Proposals,
    decoder: TargetDecoder,
    bank: Bank,
    query: VolumeEmbeddings,
    config: SegmentationConfig,
    *,
    threshold: float = 0.5,
    progress: Progress = silent,
) -> Proposals:
    """The same proposals, with masks that are drawn anew where the surest slices of the volume support the others.

    Only for a volume without annotated slices. Presence stays as it was, for a mask that was found wrongly is surest of
    itself; far from what was found there is none.
    """
    if bank.annotated(query.key.digest):
        return proposals
    found = kept(proposals, bank, query, config, threshold=threshold)
    sure = sureness(found.logits, found.presence)
    rows = surest(sure, config.self_support)
    if not rows:
        return proposals
    mask = assembled({_ONLY: found}, query).mask == 1
    own = with_own(bank, query, mask, [int(proposals.slices[row]) for row in rows], decoder)
    near = worth_another_look(sure > 0, query.slice_mm, config.self_support)
    slices = [int(index) for index in proposals.slices[near]]
    second = propose(decoder, {_ONLY: own}, query, slices, config=config, progress=progress)[_ONLY]
    logits = proposals.logits.copy()
    logits[near] = second.logits if proposals.guide is None else second.logits + proposals.guide[near]
    return replace(proposals, logits=logits, presence=np.where(near, proposals.presence, 0.0))


def kept(
    proposals: Proposals,
    bank: Bank,
    query: VolumeEmbeddings,
    config: SegmentationConfig,
    *,
    threshold: float = 0.5,
    clicked: Collection[int] = (),
) -> Proposals:
    """The same with what is not the target ruled out: slices without it, and parts that do not belong to it.

    ``threshold`` is the label's own least presence. Where slices of this volume are annotated or ``clicked`` on,
    parts that do not touch their masks are dropped. Elsewhere, of a target that is drawn in one piece, one object is
    kept: that with most evidence. Past annotated ends masks stay that much speaks for; of the first that does not, the
    result says that it should be asked.
    """
    logits = smoothed(proposals.logits, query.slice_mm, config)
    absent = proposals.presence < (threshold if config.least_presence is None else config.least_presence)
    logits = np.where(absent[:, None, None], np.minimum(logits, _OUT), logits)
    rows = {int(index): row for row, index in enumerate(proposals.slices)}
    anchors, empty = np.zeros(logits.shape, dtype=bool), np.zeros(len(logits), dtype=bool)
    for number in bank.annotated(query.key.digest):
        row = rows.get(query.index_at(bank.positions[number]))
        if row is not None:
            anchors[row] = bank.distances[number] > 0
            empty[row] = (bank.distances[number] < 0).all()
            logits[row] = np.where(bank.distances[number] == 0, logits[row], bank.distances[number])
    for row in (rows[index] for index in clicked if index in rows):
        anchors[row] = logits[row] > 0
    for row in beyond_the_ends(logits > 0, anchors.any(axis=(1, 2)), config.ends):
        logits[row] = np.minimum(logits[row], _OUT)
    if anchors.any():
        belongs = touching(logits > 0, anchors)
    elif bank.in_one_piece:
        belongs = _expected_object(logits, proposals, bank, query, config)
    else:
        belongs = _large(logits > 0, config.least_component)
    dropped = ndimage.binary_dilation((logits > 0) & ~belongs, iterations=1) & ~belongs
    logits = np.where(dropped, np.minimum(logits, _OUT), logits)
    asked: list[int] = []
    if config.continuation:
        shown = anchors.any(axis=(1, 2))
        past, asked = past_the_annotated(logits > 0, proposals, shown, empty, query.slice_mm, config.continuation)
        logits[past] = np.minimum(logits[past], _OUT)
    return replace(proposals, logits=logits, asked=tuple(int(proposals.slices[row]) for row in asked))


def _expected_object(
    logits: np.ndarray, proposals: Proposals, bank: Bank, query: VolumeEmbeddings, config: SegmentationConfig
) -> np.ndarray:
    """Of a target in one piece, the object that most speaks for, and that is most like what was labelled elsewhere."""
    positions = np.array([query.position_mm(int(index)) for index in proposals.slices])
    whole = len(proposals.slices) == query.count
    # a mask that was carried here well says better where the target is
    atlas, carried = config.atlas, proposals.carried if config.atlas else None
    expectation = expected(bank, proposals.looks if whole and not carried else None, positions, config.expectation)
    cell_mm = query.frame.input_mm * query.frame.size / logits.shape[-1]

    def plausibility(found: np.ndarray) -> float:
        near = carried.nearness(found, (query.slice_mm, cell_mm, cell_mm), atlas) if atlas and carried else 0.0
        return near + expectation.plausibility(found, positions, cell_mm)

    found = one_object(
        logits > 0,
        evidence(logits, proposals.presence, query.slice_mm, config),
        config.ends,
        plausibility=plausibility,
        candidates=config.expectation.candidates,
        more=_carried_object(logits, proposals, carried, query.slice_mm, config) if carried else (),
    )
    if not whole:
        return found
    return likely_part(found, sureness(logits, proposals.presence), positions, expectation, config.part)


def _carried_object(
    logits: np.ndarray, proposals: Proposals, carried: Guide, slice_mm: float, config: SegmentationConfig
) -> list[tuple[np.ndarray, float]]:
    """The object where the carried mask lies, and its own evidence; none without.

    On slices where something larger is found too, it would not be followed.
    """
    found = object_at(logits > 0, carried.mask, config.ends)
    alone = np.where(found | (logits <= 0), logits, _OUT)
    shown = evidence(alone, proposals.presence, slice_mm, config)[found.any(axis=(1, 2))]
    return [(found, float(shown.max()))] if shown.any() else []


def touching(masks: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """The parts of masks (n, S, S) that touch the anchors (n, S, S)."""
    parts, _ = ndimage.label(masks, structure=_NEIGHBOURS)
    return masks & np.isin(parts, np.unique(parts[anchors & masks]))


def _large(masks: np.ndarray, least_component: float) -> np.ndarray:
    """The parts of masks (n, S, S) that are not small beside the largest."""
    parts, _ = ndimage.label(masks, structure=_NEIGHBOURS)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return masks & (sizes >= least_component * sizes.max())[parts]


def assembled(proposals: Mapping[str, Proposals], query: VolumeEmbeddings) -> Prediction:
    """Masks on the volume's own grid. Where labels overlap the one with the highest logit has the voxel."""
    labels = tuple(proposals)
    slices = proposals[labels[0]].slices
    logits = np.stack([proposals[label].logits for label in labels])
    mask = np.zeros(query.grid.shape, dtype=np.uint8)
    stack = query.plane.stack(mask)
    for row, index in enumerate(slices):
        pixels = np.stack([one.pixels(row, query.frame) for one in proposals.values()])
        stack[index] = np.where(pixels.max(axis=0) > 0, pixels.argmax(axis=0) + 1, 0)
    return Prediction(
        labels=labels,
        mask=mask,
        slices=slices,
        presence=np.stack([proposals[label].presence for label in labels]),
        uncertainty=np.stack([expected_loss(proposals[label].logits) for label in labels]),
        logits=logits,
    )


def with_annotations(prediction: Prediction, query: VolumeEmbeddings, support: Support) -> Prediction:
    """The same with the annotated slices of this volume as they were annotated.

    Where an annotation says that a label is not, another label that was proposed there stays.
    """
    return replace(prediction, mask=as_annotated(prediction.mask, prediction.labels, query, support))


def as_annotated(mask: np.ndarray, labels: Sequence[str], query: VolumeEmbeddings, support: Support) -> np.ndarray:
    """A copy of a label map (slices, rows, columns) of 1, 2, ... for ``labels`` that holds what was annotated."""
    mask = mask.copy()
    stack = query.plane.stack(mask)
    for number, label in enumerate(labels, 1):
        for one in support.get(label, ()):
            if one.volume == query.key.digest:
                known = np.ones_like(one.mask) if one.known is None else one.known
                pixels = stack[one.index]
                pixels[(pixels == number) & known & ~one.mask] = 0
                pixels[one.mask & known] = number
    return mask


def smoothed(logits: np.ndarray, slice_mm: float, config: SegmentationConfig) -> np.ndarray:
    """Logits (n, S, S) of neighbouring slices, smoothed across slices; always a copy."""
    sigma = config.smooth_mm / slice_mm
    return ndimage.gaussian_filter1d(logits, sigma, axis=0, mode="nearest") if sigma > 0.1 else logits.copy()
