"""What a head finds in a volume: proposals, mended by clicks, of which the volume head keeps what is the target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.assembly import Clicks, SegmentationConfig, corrected
from ssmsam.fewshot.atlas import Guide, guide_for
from ssmsam.fewshot.proposals import Proposals, propose
from ssmsam.fewshot.roi_refinement import refined_in_rois
from ssmsam.fewshot.selection import Selected, candidates, everything, selected
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_registry import load_volume_head
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
    head: AdaptedTask,
    query: VolumeEmbeddings,
    slices: Sequence[int],
    *,
    labels: Collection[str] | None = None,
    clicks: Mapping[str, Clicks] | None = None,
    config: SegmentationConfig,
    up_to_ends: bool = False,
    progress: Progress = silent,
) -> dict[str, Finding]:
    """Label -> what the head finds of it, for ``labels``, all by default. The slices should be embedded.

    ``up_to_ends``: nothing is proposed past slices where the target ends; that saves time.
    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two batches.
    """
    banks = {label: bank for label, bank in head.banks.items() if labels is None or label in labels}
    guides = guides_for(head, banks, query, slices, progress) if config.atlases else {}
    proposed = propose(
        head.decoder,
        banks,
        query,
        slices,
        batch=config.batch,
        bank=config.bank,
        beyond=head.start,
        guides=guides,
        up_to_ends=up_to_ends,
        progress=progress,
    )
    found = {}
    for label, first in proposed.items():
        here = (clicks or {}).get(label, {})
        mended = corrected(first, here, head.decoder, banks[label], query, config.bank)
        kept = _selected(mended, head, label, query, config, clicked=here)
        if config.own_slices and not here and not banks[label].annotated(query.key.digest):
            mended, kept = _supported_by_own(mended, kept, head, label, query, config, progress)
        closer = refined_in_rois(kept.proposals, head, label, query, clicks=here, config=config, progress=progress)
        found[label] = Finding(mended, replace(kept, proposals=closer))
    return found


def guides_for(
    head: AdaptedTask,
    banks: Mapping[str, SupportBank],
    query: VolumeEmbeddings,
    slices: Sequence[int],
    progress: Progress = silent,
) -> dict[str, Guide]:
    """What the head's atlases say of the labels of which no slice is annotated in this volume."""
    side, order = head.decoder.logits_side, sorted(slices)
    wanted = [label for label, bank in banks.items() if not bank.annotated(query.key.digest)]
    found = {label: guide_for(head.atlases, label, query, order, side, progress=progress) for label in wanted}
    return {label: guide for label, guide in found.items() if guide is not None}


def _selected(
    proposals: Proposals,
    head: AdaptedTask,
    label: str,
    query: VolumeEmbeddings,
    config: SegmentationConfig,
    *,
    clicked: Collection[int] = (),
) -> Selected:
    bank = head.banks[label]
    among = candidates(proposals, bank, query, head.check(label), clicked=clicked)
    if not config.volume_head:
        return everything(proposals, among)
    return selected(proposals, load_volume_head(), among, several=not bank.in_one_piece, every_slice=config.every_slice)


def _supported_by_own(
    proposals: Proposals,
    kept: Selected,
    head: AdaptedTask,
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
    shown = np.flatnonzero((kept.proposals.logits > 0).any(axis=(1, 2)))
    if len(shown) < 2 * config.own_slices:
        return proposals, kept
    best = [int(part[kept.dice[part].argmax()]) for part in np.array_split(shown, config.own_slices)]
    own = [
        LabelledSlice(query, int(proposals.slices[row]), kept.proposals.pixels(row, query.frame) > 0) for row in best
    ]
    bank = head.banks[label].joined(SupportBank.of(own, head.decoder))
    again = propose(
        head.decoder,
        {label: bank},
        query,
        proposals.slices.tolist(),
        batch=config.batch,
        bank=config.bank,
        guides={label: proposals.guide} if proposals.guide else None,
        progress=progress,
    )[label]
    again = replace(again, presence=proposals.presence)
    second = _selected(again, head, label, query, config)
    return (again, second) if second.overall >= kept.overall else (proposals, kept)
