"""What a head finds in a volume: proposals, looked at again, mended by clicks, and rid of what is not the target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssmsam.encoders.frame import OUTSIDE
from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.fewshot.bank import Bank
from ssmsam.fewshot.closer import window_of
from ssmsam.fewshot.correcting import Clicks, corrected
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.proposals import Close, Proposals, propose, sureness
from ssmsam.fewshot.segmentation import SegmentationConfig, assembled, kept, looked_at_again, touching
from ssmsam.fewshot.self_support import surest, with_own
from ssmsam.progress import Progress, silent
from ssmsam.prompting.drawing import on_cells


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
    progress: Progress = silent,
) -> dict[str, Finding]:
    """Label -> what the head finds of it, for ``labels``, all by default. The slices should be embedded.

    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two batches.
    """
    banks = {label: bank for label, bank in head.banks.items() if labels is None or label in labels}
    proposed = propose(head.decoder, banks, query, slices, config=config, beyond=head.start, progress=progress)
    found = {}
    for label, first in proposed.items():
        bank, here, threshold = banks[label], (clicks or {}).get(label, {}), head.threshold(label, query.key.digest)
        seen = looked_at_again(first, head.decoder, bank, query, config, threshold=threshold, progress=progress)
        mended = corrected(seen, here, head.decoder, bank, query, config.bank)
        final = kept(mended, bank, query, config, threshold=threshold, clicked=here)
        if config.closer and label in head.close:
            final = looked_closer(final, head, label, query, here, config=config, progress=progress)
        found[label] = Finding(mended, final, threshold)
    return found


def looked_closer(
    final: Proposals,
    head: Head,
    label: str,
    query: VolumeEmbeddings,
    clicks: Clicks,
    *,
    config: SegmentationConfig,
    progress: Progress = silent,
) -> Proposals:
    """The same, with masks drawn anew in an enlarged window around them.

    Slices that were found to be empty stay so, and annotated ones as they are. Of what is drawn anew only the parts
    stay that touch the mask as it was.
    """
    assert config.closer
    bank, volume = head.banks[label], query.key.digest
    annotated = {query.index_at(bank.positions[number]) for number in bank.annotated(volume)}
    found = final.logits > 0
    rows = [row for row in np.flatnonzero(found.any(axis=(1, 2))).tolist() if int(final.slices[row]) not in annotated]
    window = window_of(bank, query, found, config.closer)
    if not rows or window is None:
        return final
    there, slices = query.within(window), [int(final.slices[row]) for row in rows]
    there.embed(slices, progress=progress)
    shown = head.close[label]
    if not annotated:
        shown = _with_surest(shown, final, query, there, head.decoder, config)
    seen = propose(head.decoder, {label: shown}, there, slices, config=config, beyond=head.start, progress=progress)[
        label
    ]
    seen = corrected(
        seen, {k: v for k, v in clicks.items() if window.holds(v.points)}, head.decoder, shown, there, config.bank
    )
    side = final.logits.shape[-1]
    before = np.stack([final.pixels(row, query.frame) for row in rows])
    logits = np.full_like(final.logits, OUTSIDE)
    logits[rows] = seen.logits
    anchors = np.zeros(logits.shape, dtype=bool)
    anchors[rows] = on_cells((before > 0).astype(np.float32), there.frame, side) > 0.5
    dropped = (logits > 0) & ~touching(logits > 0, anchors)
    logits[dropped] = np.minimum(logits[dropped], OUTSIDE)
    drawn = (logits > 0).any(axis=(1, 2))
    drawn[[row for row in rows if (one := clicks.get(int(final.slices[row]))) and not window.holds(one.points)]] = False
    close = Close(there.frame, logits, drawn)
    whole = final.logits.copy()
    after = replace(final, close=close)
    changed = np.flatnonzero(drawn)
    pixels = np.stack([after.pixels(row, query.frame) for row in changed]) if len(changed) else None
    if pixels is not None:
        whole[changed] = on_cells(pixels, query.frame, side)
    return replace(after, logits=whole)


def _with_surest(
    shown: Bank,
    final: Proposals,
    query: VolumeEmbeddings,
    there: VolumeEmbeddings,
    decoder: TargetDecoder,
    config: SegmentationConfig,
) -> Bank:
    """The labelled slices of other volumes, and of this one the slices whose masks are surest."""
    rows = surest(sureness(final.logits, final.presence), config.self_support)
    mask = assembled({"": final}, query).mask == 1
    return with_own(shown, there, mask, [int(final.slices[row]) for row in rows], decoder) if rows else shown
