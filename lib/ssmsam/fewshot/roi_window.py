"""A closer look at targets that are small beside the slice: again, in an enlarged window.

An embedding has one cell for every few pixels, so that a small organ is a handful of them. In a window around it the
same slices are encoded anew with more cells for the same tissue, labelled slices and query alike. On which slices the
target is was decided before, with all of the slice in view: the closer look draws its mask. Only in volumes with
annotated slices: windows of two patients are too unlike. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.support import LabelledSlice, Support
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.frame import Window
from ssmsam.ops import evenly_spaced


@dataclass(frozen=True)
class RoiConfig:
    """How much is enlarged, and what is large enough as it is."""

    margin: float = 1.4
    """The window's side is at least this times the target's longer side on the labelled slices."""
    step: float = 1.2
    """Sides come in these steps, so that another labelled slice seldom changes one."""
    most: float = 2.4
    """Enlarged by no more than this, as in training."""
    least: float = 1.25
    """What would be enlarged by less is not looked at again."""
    raster: int = 8
    """Windows are placed in steps of this part of their side, so that another labelled slice seldom moves one."""
    labelled: int = 4
    """Volumes in which fewer labelled slices show the target are seen from afar only: with three, two of them its ends,
    enlarged slices say too little of what lies between."""
    slices: int = 12
    """At most so many labelled slices of each volume are embedded again."""


def side_mm(bank: SupportBank, config: RoiConfig) -> float | None:
    """The side of a label's windows in millimetres; None for targets that fill the slice, or no cell."""
    extents, fields = [], []
    for volume in dict.fromkeys(bank.volumes):
        rows = bank.annotated(volume)
        box = _box(bank.distances[rows] > 0)
        if box is not None:
            cell_mm = float(bank.cell_mm[rows[0]])
            extents.append(max(box[2] - box[0], box[3] - box[1]) * cell_mm)
            fields.append(bank.distances.shape[-1] * cell_mm)
    if not extents:  # smaller than a cell on every slice
        return None
    smallest = max(fields) / config.most
    steps = math.ceil(math.log(max(1.0, config.margin * max(extents) / smallest), config.step))
    side = smallest * config.step**steps
    return side if side * config.least < min(fields) else None


def window_in(bank: SupportBank, volume: VolumeEmbeddings, config: RoiConfig) -> Window | None:
    """Where to look in a volume, whole slices of which are in the bank: around what is annotated there. None where
    nothing is, too little, or where a closer look would show no more."""
    side, masks = side_mm(bank, config), bank.distances[bank.annotated(volume.key.digest)] > 0
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


def roi_banks(
    banks: Mapping[str, SupportBank], support: Support, decoder: TargetDecoder, config: RoiConfig
) -> dict[str, SupportBank]:
    """Label -> its labelled slices in windows, for the labels that are worth a closer look. Embeds them."""
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
