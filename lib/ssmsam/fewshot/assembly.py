"""From the decoder's proposals on every slice to masks of a volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.proposals import BATCH, Proposals
from ssmsam.fewshot.roi_window import RoiConfig
from ssmsam.fewshot.selection import Selected
from ssmsam.fewshot.support import Support
from ssmsam.fewshot.support_bank import SupportBank, SupportBankConfig, look
from ssmsam.models.fewshot_decoder import Corrections, TargetDecoder
from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.models.prompt_small import point_tensors

Clicks = Mapping[int, SlicePrompt]
"""Slice -> what was clicked on it."""


@torch.inference_mode()
def corrected(
    proposals: Proposals,
    clicks: Clicks,
    decoder: TargetDecoder,
    bank: SupportBank,
    query: VolumeEmbeddings,
    config: SupportBankConfig,
) -> Proposals:
    """The same with the clicked slices proposed again. The target is there wherever something was clicked positively,
    and a slice that was only clicked negatively keeps its presence. Slices that are not among the proposals are left
    out."""
    logits, presence = proposals.logits.copy(), proposals.presence.copy()
    for row, index in enumerate(proposals.slices):
        prompt = clicks.get(int(index))
        if prompt is None:
            continue
        embedding = decoder.view(query.slice(int(index)))
        device = embedding["image"].device
        shown = bank.shown_to(query, [int(index)], look(embedding["image"]), config=config)
        points, kinds = point_tensors(prompt, query.frame)
        previous = torch.from_numpy(logits[row])[None, None].to(device)
        corrections = Corrections(points[None].to(device), kinds[None].to(device), previous)
        logits[row] = decoder(embedding, shown, corrections).logits[0].cpu().numpy()
        if not prompt.empty:
            presence[row] = 1.0
    return replace(proposals, logits=logits, presence=presence)


@dataclass(frozen=True)
class SegmentationConfig:
    """How proposals are made, and which steps follow. Each step can be switched off."""

    batch: int = BATCH
    closer: RoiConfig | None = field(default_factory=RoiConfig)
    """None looks at no target in an enlarged window."""
    atlases: bool = True
    """Register labelled volumes with others."""
    own_slices: int = 3
    """In a volume without annotated slices, so many of the best masks found support the others; 0 for none. Three is
    from before the volume head, chosen while looking at ``chaos_t2_mr`` 20-22 and ``sabs_ct`` 16-19, and not since."""
    volume_head: bool = True
    """Without it everything that was proposed is kept: for measuring what it is worth."""
    every_slice: bool = False
    """The target is known to be on every slice that is asked for."""
    bank: SupportBankConfig = field(default_factory=SupportBankConfig)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one volume.

    ``labels`` names the values 1, 2, ... of ``mask`` (slices, rows, columns) uint8, on the volume's own grid.
    ``slices`` (n,) were looked at, along the plane of work; for each of them and each label ``presence`` (labels, n)
    is the probability that the label is there and ``uncertainty`` (labels, n) the expected loss of Dice, both in
    [0, 1]. ``logits`` (labels, n, S, S) are in the encoder's frame. ``dice`` maps a label to the Dice in [0, 1] that is
    expected of its mask over the slices that nobody annotated. ``asked`` maps a label to the slices just past
    its annotated ends where something was proposed and left out: a person should say whether it is still there.
    """

    labels: tuple[str, ...]
    mask: np.ndarray
    slices: np.ndarray
    presence: np.ndarray
    uncertainty: np.ndarray
    logits: np.ndarray
    dice: Mapping[str, float] = field(default_factory=dict)
    asked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def assembled(found: Mapping[str, Selected], query: VolumeEmbeddings) -> Prediction:
    """Masks on the volume's own grid. Where labels overlap the one with the highest logit has the voxel."""
    labels = tuple(found)
    proposals = [one.proposals for one in found.values()]
    mask = np.zeros(query.grid.shape, dtype=np.uint8)
    stack = query.plane.stack(mask)
    for row, index in enumerate(proposals[0].slices):
        pixels = np.stack([one.pixels(row, query.frame) for one in proposals])
        stack[index] = np.where(pixels.max(axis=0) > 0, pixels.argmax(axis=0) + 1, 0)
    return Prediction(
        labels=labels,
        mask=mask,
        slices=proposals[0].slices,
        presence=np.stack([one.presence for one in proposals]),
        uncertainty=np.stack([1 - one.dice for one in found.values()]),
        logits=np.stack([one.logits for one in proposals]),
        dice={label: one.overall for label, one in found.items()},
        asked={label: one.proposals.asked for label, one in found.items() if one.proposals.asked},
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
