"""Whether a target goes on past the outermost annotated slices that show it, or ends with them.

Nobody said that nothing lies beyond: annotated slices only show where the target is. A model learned from training
patients how much speaks for a mask past an end: what the decoder claims, how sure the mask is of itself beside those
between annotated slices, how it resembles the last annotated one, and whether the target was about to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssmsam.fewshot.proposals import Proposals, expected_loss

_FARTHEST_MM = 100.0
"""A target that does not shrink towards its end is taken to go on this far; the fit had no use for more."""


@dataclass(frozen=True)
class ContinuationConfig:
    """A logistic model, *fitted* by :mod:`ssmsam.evaluation.continuation_fit` *on* masks past the ends of three or five
    annotated slices, half of them with the target's first and last slice and half from 10 to 90 % of its extent, by the
    prompted decoder: all labels of six training patients of ``chaos_t2_mr``, five of ``sabs_ct``, and five images of
    ``hippocampus_mr`` that the weights never saw; each label and placement weighs the same. Positive are masks of which
    more than half is the target. Left out patient by patient, it brought the voxels that are wrong past both kinds of
    ends from 2.2 to 0.3 % of the target in CT, from 0.3 to 0.1 % in MR and from 31 to 2.4 % in the hippocampus."""

    least_chance: float = 0.5
    """Masks less likely right than this are left out, and what lies beyond them: more likely wrong than right."""
    least_slices: int = 3
    """Fewer annotated slices that show the target say nothing of its ends."""
    intercept: float = -1.57
    presence: float = 0.4
    """Log odds of the decoder's claim that the target is on the slice."""
    loss: float = -18.5
    """The loss of Dice that the mask expects of itself,"""
    loss_between: float = -12.2
    """and the median of that between the annotated ends: how well the decoder knows the target."""
    shrinks_mm: float = 0.89
    """Logarithm of how far from the end the target would shrink to nothing, over the slice's distance from the end."""
    area: float = -2.15
    """Logarithm of the mask's area over that of the last annotated one,"""
    overlap: float = 0.23
    """and the overlap (IoU) of the two."""

    def chance(self, claim: Claim) -> float:
        """In [0, 1]: how likely the mask is right."""
        odds = self.intercept + sum(getattr(self, name) * value for name, value in vars(claim).items())
        return float(1 / (1 + np.exp(-odds)))


@dataclass(frozen=True)
class Claim:
    """What speaks for one mask past an end, as :class:`ContinuationConfig` weighs it."""

    presence: float
    loss: float
    loss_between: float
    shrinks_mm: float
    area: float
    overlap: float


@dataclass(frozen=True, eq=False)
class AnnotatedEnd:
    """One end: ``rows`` of the slices past it, outwards, the annotated ``mask`` (S, S) on the outermost slice, that
    slice's row ``start``, and the row and the area of the annotated slice before it."""

    rows: range
    start: int
    mask: np.ndarray
    row_before: int
    area_before: int

    def shrinks_over(self, slices: np.ndarray, slice_mm: float) -> float:
        """Millimetres past the end after which the target's radius is nothing if it goes on shrinking as it does."""
        gap = max(abs(int(slices[self.start]) - int(slices[self.row_before])) * slice_mm, 0.1)
        last, before = np.sqrt(self.mask.sum()), np.sqrt(max(1, self.area_before))
        slope = (before - last) / gap
        return float(np.clip(last / slope, 0, _FARTHEST_MM)) if slope > 1e-6 else _FARTHEST_MM


def ends_of(shown: np.ndarray, empty: np.ndarray, masks: np.ndarray) -> Iterator[AnnotatedEnd]:
    """The open ends of a target: ``shown`` (n,) bool are rows of which a person said that it is there, ``empty`` (n,)
    that it is not; ``masks`` (n, S, S). An end that has an empty slice beyond was answered already."""
    known = np.flatnonzero(shown)
    for start, before, rows in (
        (known[-1], known[-2], range(int(known[-1]) + 1, len(masks))),
        (known[0], known[1], range(int(known[0]) - 1, -1, -1)),
    ):
        if len(rows) and not empty[list(rows)].any():
            yield AnnotatedEnd(rows, int(start), masks[start], int(before), int(masks[before].sum()))


class Claims:
    """What speaks for the masks (n, S, S) of a volume past an annotated end, slice by slice."""

    def __init__(self, masks: np.ndarray, proposals: Proposals, shown: np.ndarray, slice_mm: float) -> None:
        """``proposals`` are what the ``masks`` are left of; ``shown`` (n,) bool are annotated rows with the target."""
        known = np.flatnonzero(shown)
        self._masks, self._proposals, self._slice_mm = masks, proposals, slice_mm
        self._losses = expected_loss(proposals.logits)
        self._between = float(np.median(self._losses[known[0] : known[-1] + 1]))

    def of(self, end: AnnotatedEnd, row: int) -> Claim:
        """What speaks for the mask on a row past an end."""
        slices, mask, last = self._proposals.slices, self._masks[row], end.mask
        away = max(abs(int(slices[row]) - int(slices[end.start])) * self._slice_mm, 1e-3)
        presence = float(np.clip(self._proposals.presence[row], 0.01, 0.99))
        return Claim(
            presence=float(np.log(presence / (1 - presence))),
            loss=float(self._losses[row]),
            loss_between=self._between,
            shrinks_mm=float(np.log(max(0.5, end.shrinks_over(slices, self._slice_mm)) / away)),
            area=float(np.log(max(1, int(mask.sum())) / max(1, int(last.sum())))),
            overlap=float((mask & last).sum() / max(1, int((mask | last).sum()))),
        )


def past_the_annotated(
    masks: np.ndarray,
    proposals: Proposals,
    shown: np.ndarray,
    empty: np.ndarray,
    slice_mm: float,
    config: ContinuationConfig,
) -> tuple[list[int], list[int]]:
    """Rows whose masks (n, S, S) lie past an annotated end without enough that speaks for them, and of these the first
    past each end: whether the target is still there should be asked. ``shown`` and ``empty`` as in :func:`ends_of`."""
    if shown.sum() < max(2, config.least_slices):
        return [], []
    claims = Claims(masks, proposals, shown, slice_mm)
    left_out: list[int] = []
    first: list[int] = []
    for end in ends_of(shown, empty, masks):
        for number, row in enumerate(end.rows):
            if not masks[row].any():
                break
            if config.chance(claims.of(end, row)) < config.least_chance:
                left_out += list(end.rows)[number:]
                first.append(row)
                break
    return left_out, first
