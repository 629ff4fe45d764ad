"""Refinement of targets that are small beside the slice, in an enlarged window: a region of interest (ROI).

An embedding has one cell for every few pixels, so that a small organ is a handful of them. In a window around it the
same slices are encoded anew with more cells for the same tissue, labelled slices and query alike. On which slices the
target is was decided before, with all of the slice in view: refinement draws its mask. Only in volumes with annotated
slices: windows of two patients are too unlike. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import RoiConfig, SegmentationConfig
from ssmsam.fewshot.proposals import Clicks, Proposals, Roi, corrected, propose
from ssmsam.fewshot.support import LabelledSlice, Support
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.frame import OUTSIDE, Frame, Window, on_cells
from ssmsam.ops import evenly_spaced, touching
from ssmsam.progress import Progress, silent


def roi_banks(
    banks: Mapping[str, SupportBank], support: Support, decoder: TargetDecoder, config: RoiConfig
) -> dict[str, SupportBank]:
    """Label -> its labelled slices in windows, for the labels that are worth refinement. Embeds them."""
    found = {}
    for label, bank in banks.items():
        slices = _enlarged(support[label], bank, config)
        if slices:
            found[label] = SupportBank.of(slices, decoder)
    return found


def _enlarged(slices: Sequence[LabelledSlice], bank: SupportBank, config: RoiConfig) -> list[LabelledSlice]:
    found: list[LabelledSlice] = []
    for volume in dict.fromkeys(one.volume for one in slices):
        several = [one for one in slices if one.volume == volume]
        window = window_in(bank, several[0].embeddings, config)
        if window is not None:
            part = several[0].embeddings.within(window)
            spread = evenly_spaced(len(several), config.slices)
            part.embed([several[n].index for n in spread])
            found += [replace(several[n], embeddings=part) for n in spread]
    return found


def refined_in_roi(
    final: Proposals,
    task: AdaptedTask,
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
    are its support.
    """
    bank = task.banks[label]
    window = window_in(bank, query, config.roi) if config.roi and label in task.roi_banks else None
    if window is None:
        return final
    left_alone = {*bank.annotated_slices(query), *(i for i, one in clicks.items() if not window.holds(one.points))}
    drawn = np.flatnonzero((final.logits > 0).any(axis=(1, 2)))
    rows = [int(row) for row in drawn if int(final.slices[row]) not in left_alone]
    if not rows:
        return final
    enlarged, slices = query.within(window), [int(final.slices[row]) for row in rows]
    enlarged.embed(slices, progress=progress)
    near = replace(task, banks={label: task.roi_banks[label]})
    config = replace(config, bank=replace(config.bank, others=0))
    proposals = propose(near, enlarged, slices, config=config, progress=progress)[label]
    proposals = corrected(proposals, clicks, near, label, enlarged, config)
    return redrawn_in(final, rows, proposals.logits, query.frame, enlarged.frame)


def redrawn_in(final: Proposals, rows: Sequence[int], seen: np.ndarray, whole: Frame, part: Frame) -> Proposals:
    """``seen`` (rows, S, S) in the window in place of what was drawn on these rows."""
    side = final.logits.shape[-1]
    before = np.stack([final.pixels(row, whole) > 0 for row in rows])
    logits, anchors = np.full_like(final.logits, OUTSIDE), np.zeros(final.logits.shape, dtype=bool)
    logits[rows] = seen
    anchors[rows] = on_cells(before, part, side) > 0.5
    strayed = (logits > 0) & ~touching(logits > 0, anchors)
    logits[strayed] = OUTSIDE
    roi = Roi(part, logits, (logits > 0).any(axis=(1, 2)))
    redrawn, cells = replace(final, roi=roi), final.logits.copy()
    for row in np.flatnonzero(roi.drawn):
        cells[row] = on_cells(redrawn.pixels(row, whole)[None], whole, side)[0]
    return replace(redrawn, logits=cells)


def side_mm(masks: Mapping[str, tuple[np.ndarray, float]], config: RoiConfig) -> float | None:
    """The side of a label's windows in millimetres, from its masks by volume and their cells' sides; None for targets
    that fill the slice, or no cell."""
    extents, fields = [], []
    for drawn, cell_mm in masks.values():
        box = _box(drawn)
        if box is not None:
            extents.append(max(box[2] - box[0], box[3] - box[1]) * cell_mm)
            fields.append(drawn.shape[-1] * cell_mm)
    if not extents:  # smaller than a cell on every slice
        return None
    smallest = max(fields) / config.most
    steps = math.ceil(math.log(max(1.0, config.margin * max(extents) / smallest), config.step))
    side = smallest * config.step**steps
    return side if side * config.least < min(fields) else None


def window_in(bank: SupportBank, volume: VolumeEmbeddings, config: RoiConfig) -> Window | None:
    """Where to enlarge a volume, whole slices of which are in the bank: around what is annotated there. None where
    nothing is, too little, or where enlarging shows no more."""
    every = bank.annotated_masks()
    if volume.key.digest not in every:
        return None
    side, masks = side_mm(every, config), every[volume.key.digest][0]
    box = _box(masks)
    if side is None or box is None or masks.any(axis=(1, 2)).sum() < config.labelled:
        return None
    frame = volume.frame
    cell = frame.size / masks.shape[-1]
    centre = np.array([(box[1] + box[3]) / 2, (box[0] + box[2]) / 2]) * cell - 0.5
    x, y = frame.points_to_slice(centre)[0]
    height, width = (max(1, round(side / mm)) for mm in frame.pixel_mm)
    # the same part of the body however the volume is stored
    rows, first_row = _span(y, height, frame.height, config, turned=frame.mirrored[0])
    columns, first_column = _span(x, width, frame.width, config, turned=frame.mirrored[1])
    return Window(first_row, first_column, rows, columns)


def _span(centre: float, wanted: int, available: int, config: RoiConfig, *, turned: bool) -> tuple[int, int]:
    """How many pixels, and the first of them; ``turned`` counts the steps from the other end."""
    length = min(wanted, available)
    step = max(1, length // config.raster)
    middle = available - 1 - centre if turned else centre
    first = int(np.clip(round((middle + 0.5 - length / 2) / step) * step, 0, available - length))
    return length, available - length - first if turned else first


def _box(masks: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of masks (n, S, S), the last two outside; None when they are empty."""
    rows, columns = (np.flatnonzero(masks.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
