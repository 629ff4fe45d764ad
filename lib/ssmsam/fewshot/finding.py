"""What a head finds in a volume: proposals, looked at again, mended by clicks, and rid of what is not the target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.fewshot.atlas import AtlasConfig, guide_for
from ssmsam.fewshot.closer_look import looked_closer
from ssmsam.fewshot.correcting import Clicks, corrected
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.proposals import Proposals, propose
from ssmsam.fewshot.segmentation import SegmentationConfig, kept, looked_at_again
from ssmsam.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Finding:
    """Of one label on some slices: what the decoder ``proposed``, the ``final`` masks as they are served, and the
    ``threshold`` of presence between both."""

    proposed: Proposals
    final: Proposals
    threshold: float


def find(
    head: Head,
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

    ``up_to_ends``: nothing is proposed past slices where the target ends; the final masks are the same.
    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two batches.
    """
    banks = {label: bank for label, bank in head.banks.items() if labels is None or label in labels}
    thresholds = {label: head.threshold(label, query.key.digest) for label in banks}
    least = thresholds if config.least_presence is None else dict.fromkeys(banks, config.least_presence)
    proposed = propose(
        head.decoder,
        banks,
        query,
        slices,
        config=config,
        beyond=head.start,
        least_presence=least if up_to_ends and not config.smooth_mm else None,
        progress=progress,
    )
    found = {}
    for label, first in proposed.items():
        bank, here, threshold = banks[label], (clicks or {}).get(label, {}), thresholds[label]
        if config.atlas and not bank.annotated(query.key.digest):
            first = _guided(first, head, label, query, config.atlas, progress)
        seen = looked_at_again(first, head.decoder, bank, query, config, threshold=threshold, progress=progress)
        mended = corrected(seen, here, head.decoder, bank, query, config.bank)
        final = kept(mended, bank, query, config, threshold=threshold, clicked=here)
        final = looked_closer(final, head, label, query, clicks=here, config=config, progress=progress)
        found[label] = Finding(mended, final, threshold)
    return found


def _guided(
    proposals: Proposals, head: Head, label: str, query: VolumeEmbeddings, config: AtlasConfig, progress: Progress
) -> Proposals:
    """The same with what the head's atlases say, if it has any."""
    side, slices = proposals.logits.shape[-1], proposals.slices.tolist()
    guide = guide_for(head.atlases, label, query, slices, side, config=config, progress=progress)
    return proposals if guide is None else proposals.guided(guide, config)
