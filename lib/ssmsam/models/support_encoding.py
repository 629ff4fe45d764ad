"""What a labelled slice says about its target: tokens that summarise it, and cells to compare with one by one.

The tokens are the target embeddings of Xie et al. (2024): means of the image embedding over the labelled region. Ours
are the tokens for its parts, its surroundings and the rest of the slice, and the cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F

from ssmsam.models.encoder import Batch

FOREGROUND_CELLS, RING_CELLS, FAR_CELLS = 64, 32, 96
CELLS = FOREGROUND_CELLS + RING_CELLS + FAR_CELLS
"""Cells kept of a slice."""
PARTS = 3
"""Clusters that the target's cells are divided into."""
LEAST_SHARE = 0.05
"""A cell that the target fills less than this belongs to its surroundings."""
RING = 5
"""Side of the window, in cells, within which surroundings are still a ring around the target."""
_ITERATIONS = 3


class TokenKind(IntEnum):
    """What a token summarises; NONE pads."""

    NONE = 0
    TARGET = 1
    PART = 2
    RING = 3
    FAR = 4


KINDS = (TokenKind.TARGET, *(TokenKind.PART,) * PARTS, TokenKind.RING, TokenKind.FAR)
"""The tokens of one slice, in their order."""


@dataclass(frozen=True, eq=False)
class SupportEncoding(Batch):
    """Of N labelled slices, T = len(KINDS) tokens and M = CELLS cells each.

    ``tokens`` (N, T, D), ``kinds`` (N, T) of :class:`TokenKind`, NONE where there is nothing to summarise;
    ``cells`` (N, M, D), ``places`` (N, M, 2) their centres as (x, y) in input pixels, ``shares`` (N, M) in [0, 1] how
    much of a cell the target fills, ``valid`` (N, M) bool.
    """

    tokens: torch.Tensor
    kinds: torch.Tensor
    cells: torch.Tensor
    places: torch.Tensor
    shares: torch.Tensor
    valid: torch.Tensor


def describe(image: torch.Tensor, mask: torch.Tensor, known: torch.Tensor, stride: int) -> SupportEncoding:
    """Describe the target on N labelled slices.

    ``image`` (N, D, h, w) is the image embedding with ``stride`` input pixels per cell, ``mask`` (N, 1, S, S) in
    [0, 1] the target, ``known`` (N, 1, S, S) in [0, 1] where the mask is truth (outside the slice nothing is known).
    """
    side = image.shape[-2], image.shape[-1]
    known = F.adaptive_avg_pool2d(known, side)
    share = F.adaptive_avg_pool2d(mask, side) * (known > 0.5)
    ring = (F.max_pool2d(share, RING, stride=1, padding=RING // 2) > LEAST_SHARE) & (share <= LEAST_SHARE)
    ring &= known > 0.5
    far = (known > 0.5) & (share <= LEAST_SHARE) & ~ring
    chosen, valid = _choose([share > LEAST_SHARE, ring, far], (FOREGROUND_CELLS, RING_CELLS, FAR_CELLS))
    flat = image.flatten(2).transpose(1, 2)
    cells = flat.gather(1, chosen[..., None].expand(-1, -1, flat.shape[2]))
    shares = share.flatten(1).gather(1, chosen)
    summaries = [_mean(flat, area.flatten(1).to(flat)) for area in (share, ring, far)]
    parts, filled = _parts(cells[:, :FOREGROUND_CELLS], shares[:, :FOREGROUND_CELLS] * valid[:, :FOREGROUND_CELLS])
    tokens = torch.cat([summaries[0][:, None], parts, summaries[1][:, None], summaries[2][:, None]], dim=1)
    present = torch.stack([area.flatten(1).any(1) for area in (share > LEAST_SHARE, ring, far)], dim=1)
    given = torch.cat([present[:, :1], filled, present[:, 1:]], dim=1)
    kinds = torch.tensor([int(kind) for kind in KINDS], device=image.device).expand(len(image), -1)
    return SupportEncoding(
        tokens=tokens,
        kinds=torch.where(given, kinds, int(TokenKind.NONE)),
        cells=cells,
        places=_centres(chosen, side[1], stride),
        shares=shares,
        valid=valid,
    )


def _choose(areas: list[torch.Tensor], quotas: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells spread over each area (N, 1, h, w): numbers (N, sum of quotas) and whether they are in it."""
    chosen, valid = [], []
    for area, quota in zip(areas, quotas, strict=True):
        flat = area.flatten(1)
        count = flat.shape[1]
        # always the same disorder, so that the same slice always gives the same cells
        disorder = (torch.arange(count, device=flat.device) * 0.6180339887498949) % 1.0
        top = (flat * (1.0 + disorder)).topk(min(quota, count), dim=1)
        missing = quota - top.indices.shape[1]
        chosen.append(F.pad(top.indices, (0, missing)))
        valid.append(F.pad(top.values > 0, (0, missing)))
    return torch.cat(chosen, dim=1), torch.cat(valid, dim=1)


def _mean(cells: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, K, D) and (N, K) -> (N, D); zeros where all weights are."""
    return torch.einsum("nk,nkd->nd", weight, cells) / weight.sum(1, keepdim=True).clamp(min=1e-4)


def _parts(cells: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted k-means of (N, K, D): means (N, PARTS, D) and which of them have any cell (N, PARTS).

    Starts from three cells that are far apart, and needs no random number.
    """
    with torch.no_grad():
        seeds = [weight.argmax(1)]
        gone = (cells - _pick(cells, seeds[0])).square().sum(2)
        for _ in range(PARTS - 1):
            seeds.append((gone * (weight > 0)).argmax(1))
            gone = torch.minimum(gone, (cells - _pick(cells, seeds[-1])).square().sum(2))
        centres = torch.cat([_pick(cells, seed) for seed in seeds], dim=1)
        for _ in range(_ITERATIONS):
            member = F.one_hot(torch.cdist(cells, centres).argmin(2), PARTS) * weight[..., None]
            total = member.sum(1)[..., None]
            centres = torch.where(total > 0, member.transpose(1, 2) @ cells / total.clamp(min=1e-4), centres)
    return member.transpose(1, 2) @ cells / total.clamp(min=1e-4), total[..., 0] > 0


def _pick(cells: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One cell of each slice, (N, 1, D)."""
    return cells.gather(1, index[:, None, None].expand(-1, 1, cells.shape[2]))


def _centres(chosen: torch.Tensor, width: int, stride: int) -> torch.Tensor:
    xy = torch.stack([chosen % width, chosen // width], dim=-1).float()
    return xy * stride + (stride - 1) / 2
