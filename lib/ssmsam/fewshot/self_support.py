"""The surest slices of a volume without annotations become its own support.

Patients differ more from each other than the slices of one patient do. What was found in another patient's volume with
most confidence therefore shows the rest of that volume better what to look for: the self-support of Fan et al. (2022),
there by prototypes within one image, here by labelled slices within one volume, which the decoder was trained to use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.fewshot.bank import Bank
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.support import LabelledSlice


@dataclass(frozen=True)
class SelfSupportConfig:
    """How many slices of what was found support the rest; 0 for none."""

    slices: int = 3
    sure: float = 0.8
    """Slices with less evidence than this share of the surest one's support nothing."""
    reach_mm: float = 15.0
    """How far beyond the object that was found the volume is looked at again; what lies farther is not the target."""


def surest(evidence: np.ndarray, config: SelfSupportConfig) -> list[int]:
    """Rows (of n) that may support the others, spread over the object; ``evidence`` (n,), 0 where nothing was found."""
    found = np.flatnonzero(evidence > 0)
    if not len(found) or not config.slices:
        return []
    parts = np.array_split(found, min(config.slices, len(found)))
    best = [int(part[evidence[part].argmax()]) for part in parts]
    return [row for row in best if evidence[row] >= config.sure * evidence.max()]


def worth_another_look(found: np.ndarray, slice_mm: float, config: SelfSupportConfig) -> np.ndarray:
    """(n,) bool: the rows from a little before the first one of ``found`` (n,) bool to a little after the last."""
    rows = np.flatnonzero(found)
    reach = config.reach_mm / slice_mm
    order = np.arange(len(found))
    near: np.ndarray = (order >= rows[0] - reach) & (order <= rows[-1] + reach)
    return near


def with_own(bank: Bank, query: VolumeEmbeddings, mask: np.ndarray, slices: list[int], decoder: TargetDecoder) -> Bank:
    """The bank and in it some slices of the query as though they were annotated. ``mask`` (slices, rows, columns) bool
    is on the volume's own grid."""
    stack = query.plane.stack(mask)
    shown = [LabelledSlice(query, index, stack[index]) for index in slices]
    return bank.joined(Bank.of(shown, decoder))
