"""The volume head: which slices a target is on, which of several objects it is, and how good its mask is.

A decoder answers slice by slice. What it found on all slices of a volume is described by a few numbers for each slice
and object (:mod:`ssmsam.fewshot.selection`), and a small network reads them along the slices. It is trained on
proposals for training patients and takes the place of thresholds and rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

SLICE_DESCRIPTORS = 27
OBJECT_DESCRIPTORS = 17
"""How many numbers there are for each slice of an object, and for an object: what the packaged head was trained on."""
_WIDTH = 48
_DROPPED = 0.1
"""Share of hidden values dropped in training: a guess."""
_DILATIONS = (1, 2, 4, 8)
"""Of the convolutions along the slices: together they see 30 slices to either side, as long as most organs."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """Of K objects on n slices, all as logits: ``keep`` (K, n) that the object's mask there is mostly the target,
    ``dice`` (K, n) of that mask, ``target`` (K,) that the object is the target and ``overall`` (K,) the Dice of what is
    kept over all slices that nobody annotated."""

    keep: torch.Tensor
    dice: torch.Tensor
    target: torch.Tensor
    overall: torch.Tensor


class VolumeHead(nn.Module):
    """Descriptors of slices (K, n, D) and of objects (K, E) -> :class:`Judgement`.

    Residual convolutions along the slices, with a mean over the slices that show the object fed back to each of them.
    """

    def __init__(self, slice_descriptors: int, object_descriptors: int) -> None:
        super().__init__()
        self.slices = nn.Linear(slice_descriptors, _WIDTH)
        self.objects = nn.Linear(object_descriptors, _WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in _DILATIONS)
        self.along = nn.ModuleList(
            nn.Conv1d(_WIDTH, _WIDTH, 3, padding=dilation, dilation=dilation) for dilation in _DILATIONS
        )
        self.mixes = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in _DILATIONS)
        self.means = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in _DILATIONS)
        self.drop = nn.Dropout(_DROPPED)
        self.each = nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 2))
        self.whole = nn.Sequential(nn.Linear(2 * _WIDTH, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 2))

    def forward(self, slices: torch.Tensor, objects: torch.Tensor, drawn: torch.Tensor) -> Judgement:
        """Judge K objects on n slices.

        Args:
            slices: (K, n, D) descriptors of each object's slices, in the order of their positions.
            objects: (K, E) descriptors of the objects.
            drawn: (K, n) 1 where the object has a mask, else 0.
        """
        x = F.gelu(self.slices(slices) + self.objects(objects)[:, None])
        weight = drawn[..., None] / drawn.sum(1).clamp(min=1)[:, None, None]
        for norm, along, mix, mean in zip(self.norms, self.along, self.mixes, self.means, strict=True):
            y = along(norm(x).transpose(1, 2)).transpose(1, 2) + mean((x * weight).sum(1, keepdim=True))
            x = x + mix(self.drop(F.gelu(y)))
        keep, dice = self.each(x).unbind(-1)
        kept = (keep.sigmoid() * drawn)[..., None]
        over = (x * kept).sum(1) / kept.sum(1).clamp(min=1e-3)
        target, overall = self.whole(torch.cat([(x * weight).sum(1), over], dim=1)).unbind(-1)
        return Judgement(keep, dice, target, overall)
