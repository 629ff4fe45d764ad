"""What a task finds in a volume: proposals, corrected by clicks, of which the volume head keeps what is the target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.atlas import guides_for
from ssmsam.fewshot.config import SegmentationConfig
from ssmsam.fewshot.proposals import Clicks, Proposals, corrected, propose
from ssmsam.fewshot.roi_refinement import refined_in_roi
from ssmsam.fewshot.selection import Selected, select_target
from ssmsam.fewshot.support import LabelledSlice, Support
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Finding:
    """Of one label on some slices: what the decoder ``proposed``, and what is kept of it."""

    proposed: Proposals
    selected: Selected

    @property
    def final(self) -> Proposals:
        """The masks as they are served."""
        return self.selected.proposals


def find(
    task: AdaptedTask,
    query: VolumeEmbeddings,
    slices: Sequence[int],
    *,
    labels: Collection[str] | None = None,
    clicks: Mapping[str, Clicks] | None = None,
    config: SegmentationConfig,
    up_to_ends: bool = False,
    progress: Progress = silent,
) -> dict[str, Finding]:
    """Label -> what a task finds of it in a volume.

    Args:
        task: Decoder and support banks.
        query: The volume.
        slices: Numbers of slices, which should be embedded.
        labels: Those of the task that are wanted, by default all.
        clicks: By label, what was clicked on single slices.
        config: Which steps follow on the decoder's proposals.
        up_to_ends: Nothing is proposed past slices where the target ends; that saves time.
        progress: Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two
            batches.
    """
    banks = {label: bank for label, bank in task.banks.items() if labels is None or label in labels}
    task = replace(task, banks=banks)
    side, atlases = task.decoder.logits_side, task.atlases if config.atlases else ()
    guides = guides_for(atlases, banks, query, slices, side, progress=progress)
    proposed = propose(task, query, slices, config=config, guides=guides, up_to_ends=up_to_ends, progress=progress)
    found = {}
    for label, first in proposed.items():
        clicked = (clicks or {}).get(label, {})
        proposals = corrected(first, clicked, task, label, query, config)
        kept = select_target(proposals, task, label, query, config, clicked=clicked)
        if config.own_slices and not clicked and not banks[label].annotated(query.key.digest):
            proposals, kept = _self_supported(proposals, kept, task, label, query, config, progress)
        refined = refined_in_roi(kept.proposals, task, label, query, clicks=clicked, config=config, progress=progress)
        found[label] = Finding(proposals, replace(kept, proposals=refined))
    return found


def _self_supported(
    proposals: Proposals,
    kept: Selected,
    task: AdaptedTask,
    label: str,
    query: VolumeEmbeddings,
    config: SegmentationConfig,
    progress: Progress,
) -> tuple[Proposals, Selected]:
    """The same after the best masks that were found, spread over the target, have supported the others.

    Patients differ more from each other than the slices of one do: the self-support of Fan et al. (2022), there by
    prototypes within one image, here by slices within one volume, which the decoder was trained to use. Kept where the
    volume head expects more of it.
    """
    drawn = np.flatnonzero((kept.proposals.logits > 0).any(axis=(1, 2)))
    if len(drawn) < 2 * config.own_slices:
        return proposals, kept
    best = [int(part[kept.dice[part].argmax()]) for part in np.array_split(drawn, config.own_slices)]
    own = [
        LabelledSlice(query, int(proposals.slices[row]), kept.proposals.pixels(row, query.frame) > 0) for row in best
    ]
    bank = task.banks[label].joined(SupportBank.of(own, task.decoder))
    guides = {label: proposals.guide} if proposals.guide else None
    supported = replace(task, banks={label: bank}, initial=None)
    order = proposals.slices.tolist()
    again = propose(supported, query, order, config=config, guides=guides, progress=progress)[label]
    again = replace(again, presence=proposals.presence)
    second = select_target(again, task, label, query, config)
    # what to expect was judged before own masks passed for annotated ones
    return (again, replace(second, expected=kept.expected)) if second.rank >= kept.rank else (proposals, kept)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one volume.

    Attributes:
        labels: Names of the values 1, 2, ... of ``mask``.
        mask: (slices, rows, columns) uint8, on the volume's own grid.
        slices: (n,) numbers of the slices that were looked at, along the plane of work.
        presence: (labels, n) probabilities in [0, 1] that the label is on the slice.
        uncertainty: (labels, n) the expected loss of Dice in [0, 1].
        logits: (labels, n, S, S) in the encoder's frame.
        dice: Label -> the Dice in [0, 1] that is expected of its mask over the slices that nobody annotated.
        asked: Label -> the slices just past its annotated ends where something was proposed and left out: a person
            should say whether it is still there.
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
        dice={label: one.expected for label, one in found.items()},
        asked={label: one.proposals.asked for label, one in found.items() if one.proposals.asked},
    )


def as_annotated(mask: np.ndarray, labels: Sequence[str], query: VolumeEmbeddings, support: Support) -> np.ndarray:
    """A copy of a label map (slices, rows, columns) of 1, 2, ... for ``labels`` that holds what was annotated.

    Where an annotation says that a label is not, another label that was proposed there stays.
    """
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
