"""Masks of small targets, drawn anew in their enlarged windows: see :mod:`ssmsam.fewshot.roi_window`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.assembly import Clicks, SegmentationConfig, corrected
from ssmsam.fewshot.proposals import Close, Proposals, propose
from ssmsam.fewshot.roi_window import window_in
from ssmsam.models.frame import OUTSIDE, Frame
from ssmsam.models.prompt_decoder import on_cells
from ssmsam.ops import touching
from ssmsam.progress import Progress, silent


def refined_in_rois(
    final: Proposals,
    head: AdaptedTask,
    label: str,
    query: VolumeEmbeddings,
    *,
    clicks: Clicks,
    config: SegmentationConfig,
    progress: Progress = silent,
) -> Proposals:
    """The same, with the masks of one label drawn anew in an enlarged window; embeds it.

    Slices that were found to be empty stay so, annotated ones as they are, and so do those with clicks outside the
    window. Of what is drawn anew only the parts stay that touch the mask as it was. Only this volume's labelled slices
    are shown.
    """
    if config.closer is None or label not in head.close:
        return final
    window = window_in(head.banks[label], query, config.closer)
    if window is None:
        return final
    left_alone = {query.index_at(head.banks[label].positions[n]) for n in head.banks[label].annotated(query.key.digest)}
    left_alone |= {index for index, prompt in clicks.items() if not window.holds(prompt.points)}
    shows = np.flatnonzero((final.logits > 0).any(axis=(1, 2)))
    rows = [int(row) for row in shows if int(final.slices[row]) not in left_alone]
    if not rows:
        return final
    there, slices, shown = query.within(window), [int(final.slices[row]) for row in rows], head.close[label]
    there.embed(slices, progress=progress)
    bank = replace(config.bank, others=0)
    seen = propose(
        head.decoder,
        {label: shown},
        there,
        slices,
        batch=config.batch,
        bank=bank,
        beyond=head.start,
        progress=progress,
    )[label]
    mended = corrected(seen, clicks, head.decoder, shown, there, bank)
    return redrawn_in(final, rows, mended.logits, query.frame, there.frame)


def redrawn_in(final: Proposals, rows: Sequence[int], seen: np.ndarray, whole: Frame, part: Frame) -> Proposals:
    """``seen`` (rows, S, S) in the window in place of what was drawn on these rows."""
    side = final.logits.shape[-1]
    before = np.stack([final.pixels(row, whole) > 0 for row in rows])
    logits, anchors = np.full_like(final.logits, OUTSIDE), np.zeros(final.logits.shape, dtype=bool)
    logits[rows] = seen
    anchors[rows] = on_cells(before, part, side) > 0.5
    strayed = (logits > 0) & ~touching(logits > 0, anchors)
    logits[strayed] = OUTSIDE
    close = Close(part, logits, (logits > 0).any(axis=(1, 2)))
    redrawn, cells = replace(final, close=close), final.logits.copy()
    for row in np.flatnonzero(close.drawn):
        cells[row] = on_cells(redrawn.pixels(row, whole)[None], whole, side)[0]
    return replace(redrawn, logits=cells)
