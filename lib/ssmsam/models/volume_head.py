"""The volume head: which slices a target is on, which of several objects it is, and how good its mask is.

A decoder answers slice by slice. What it found on all slices of a volume is described by a few numbers for each slice
and object (:mod:`ssmsam.fewshot.selection`), and a small network reads them along the slices. It is trained on
proposals for training patients and takes the place of thresholds and rules.

What a user is told of the quality is a part of its own: a regression from means and spreads of the same numbers, and
from what the network makes of the object. The network learned where the decoder is good, on organs that it knows. The
regression was fitted later, also on targets that are no organ and on proposals of decoders that see badly.
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
_FARTHEST = 3.0
"""Standard deviations from what it was trained on, beyond which a number says no more about the Dice: a guess."""
_KNOWN = slice(8, 10)
"""The descriptors of a slice that say that it is annotated, with the target or without."""
_DILATIONS = (1, 2, 4, 8)
"""Of the convolutions along the slices: together they see 30 slices to either side, as long as most organs."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """Of K objects on n slices, all as logits: ``keep`` (K, n) that the object's mask there is mostly the target,
    ``dice`` (K, n) of that mask, ``target`` (K,) that the object is the target, ``overall`` (K,) by which proposals for
    one volume compare, and ``expected`` (K,) the Dice of what is kept over all slices that nobody annotated."""

    keep: torch.Tensor
    dice: torch.Tensor
    target: torch.Tensor
    overall: torch.Tensor
    expected: torch.Tensor


class VolumeHead(nn.Module):
    """Descriptors of slices (K, n, D) and of objects (K, E) -> :class:`Judgement`.

    Residual convolutions along the slices, with a mean over the slices that show the object fed back to each of them.
    """

    centre: torch.Tensor
    spread: torch.Tensor

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
        numbers = object_descriptors + 2 * slice_descriptors + _WIDTH
        self.register_buffer("centre", torch.zeros(numbers))
        self.register_buffer("spread", torch.ones(numbers))
        self.estimate = nn.Linear(numbers, 1)

    def read(
        self, slices: torch.Tensor, objects: torch.Tensor, drawn: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``keep`` and ``dice`` as in :class:`Judgement`, and what the network makes of each object (K, hidden).
        Arguments as in :meth:`forward`."""
        x = F.gelu(self.slices(slices) + self.objects(objects)[:, None])
        weight = drawn[..., None] / drawn.sum(1).clamp(min=1)[:, None, None]
        for norm, along, mix, mean in zip(self.norms, self.along, self.mixes, self.means, strict=True):
            y = along(norm(x).transpose(1, 2)).transpose(1, 2) + mean((x * weight).sum(1, keepdim=True))
            x = x + mix(self.drop(F.gelu(y)))
        keep, dice = self.each(x).unbind(-1)
        kept = (keep.sigmoid() * drawn)[..., None]
        over = (x * kept).sum(1) / kept.sum(1).clamp(min=1e-3)
        return keep, dice, self.whole[:-1](torch.cat([(x * weight).sum(1), over], dim=1))

    def usual(self, numbers: torch.Tensor) -> torch.Tensor:
        """What :func:`summary` says, in standard deviations from the mean of what the head was trained on."""
        return ((numbers - self.centre) / self.spread).clamp(-_FARTHEST, _FARTHEST)

    def forward(self, slices: torch.Tensor, objects: torch.Tensor, drawn: torch.Tensor) -> Judgement:
        """Judge K objects on n slices.

        Args:
            slices: (K, n, D) descriptors of each object's slices, in the order of their positions.
            objects: (K, E) descriptors of the objects.
            drawn: (K, n) 1 where the object has a mask, else 0.
        """
        keep, dice, hidden = self.read(slices, objects, drawn)
        target, overall = self.whole[-1](hidden).unbind(-1)
        known = summary(slices, objects, keep.sigmoid() * drawn, hidden)
        return Judgement(keep, dice, target, overall, self.estimate(self.usual(known))[:, 0])


def summary(slices: torch.Tensor, objects: torch.Tensor, kept: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What is known of K objects (K, E + 2 D + H): their descriptors, mean and spread of those of the slices that are
    ``kept`` (K, n) in [0, 1] of each and that nobody annotated, and what the network makes of them, ``hidden``."""
    weight = (kept * (1 - slices[..., _KNOWN].sum(-1).clamp(max=1)))[..., None]
    total = weight.sum(1).clamp(min=1e-3)
    mean = (slices * weight).sum(1) / total
    spread = ((slices - mean[:, None]).square() * weight).sum(1) / total
    return torch.cat([objects, mean, spread.clamp(min=1e-6).sqrt(), hidden], dim=1)
