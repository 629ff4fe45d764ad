"""The online optimiser in closed form: ridge regression from the features of cells to a mask.

SSM-SAM (Zhang et al., 2024) adapts to a new organ by meta-learned gradient steps. Ridge regression takes the last of
all such steps at once, and as its solution can be differentiated, penalty, scales of features and balance of classes
are learned over episodes like everything else (Bertinetto et al., ICLR 2019, "R2-D2").

All that a labelled slice says is a few sums over its cells, :class:`SliceSums`. They add up: a further slice is one
addition, and leaving one out is one subtraction, so that the answer of all slices but one on that one, an honest
estimate, costs nothing but a solution more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.encoder import Batch

HIDDEN = 128
"""Rectified features. Random ones, as many as features, gained 1 (MR) and 5 points (CT) on two training patients.
That they are half as many is a guess at what the time is worth."""


@dataclass(frozen=True, eq=False)
class SliceSums(Batch):
    """Sums over the cells of N labelled slices, with cells x of d features, target's share s and weight 1 where known.

    ``inner`` (N, d, d) sums x xᵀ s, ``outer`` (N, d, d) sums x xᵀ (1 - s), ``inner_mean`` and ``outer_mean`` (N, d)
    the same of x, ``inner_count`` and ``outer_count`` (N,) the same of 1.
    """

    inner: torch.Tensor
    outer: torch.Tensor
    inner_mean: torch.Tensor
    outer_mean: torch.Tensor
    inner_count: torch.Tensor
    outer_count: torch.Tensor

    def weighted(self, weights: torch.Tensor) -> SliceSums:
        """Q sums over the N slices, each with its weight: ``weights`` (Q, N)."""
        return SliceSums(
            **{name: torch.tensordot(weights.to(value), value, dims=1) for name, value in vars(self).items()}
        )


@dataclass(frozen=True, eq=False)
class Regression:
    """Labelled slices, ready to be solved in any selection. Each selection is solved once: the optimiser is not changed
    by adaptation."""

    optimiser: ClosedFormOptimiser
    sums: SliceSums
    _solved: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def solved(self, chosen: torch.Tensor, across: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """``chosen`` (Q, N) bool and ``across`` (Q,), 1 where slices of other volumes than the query's are chosen, else
        0, by default 0 -> weights (Q, d + 1), zero where no slice was chosen, and trust (Q,) in [0, 1]."""
        across = torch.zeros(len(chosen)) if across is None else across
        key = chosen.cpu().numpy().tobytes() + across.cpu().numpy().tobytes()
        if key not in self._solved:
            weights = self.optimiser.solve(self.sums.weighted(chosen.float()), across) * chosen.any(1, keepdim=True)
            self._solved[key] = weights, self.optimiser.left_out(self.sums, chosen.float(), across)
        return self._solved[key]

    def __getitem__(self, index: torch.Tensor) -> Regression:
        return Regression(self.optimiser, self.sums[index])

    def joined(self, other: Regression) -> Regression:
        """The slices of both."""
        return Regression(self.optimiser, SliceSums.cat([self.sums, other.sums]))


@dataclass(frozen=True, eq=False)
class SolvedRegression:
    """What is left of a :class:`Regression` over ``count`` slices when only its solution was kept: ``weights`` (d + 1,)
    and ``fit`` () of all of them for other volumes. ``more`` are slices that were labelled since, the last ones."""

    weights: torch.Tensor
    fit: torch.Tensor
    count: int
    more: Regression | None = None

    def solved(self, chosen: torch.Tensor, across: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Regression.solved`; any choice of the slices whose sums are gone stands for all of them."""
        weights, fit = self.weights.expand(len(chosen), -1), self.fit.expand(len(chosen))
        if self.more is None or bool(chosen[:, : self.count].any()):
            return weights * chosen.any(1, keepdim=True), fit
        return self.more.solved(chosen[:, self.count :], across)

    def __getitem__(self, index: torch.Tensor) -> SolvedRegression:
        gone = index < self.count
        more = None if self.more is None else self.more[index[~gone] - self.count]
        return SolvedRegression(self.weights, self.fit, int(gone.sum()), more)

    def joined(self, other: Regression) -> SolvedRegression:
        """With further slices."""
        more = other if self.more is None else self.more.joined(other)
        return SolvedRegression(self.weights, self.fit, self.count, more)


class ClosedFormOptimiser(nn.Module):
    """Features of cells and masks of labelled slices -> logits of the mask on any slice.

    Beside the ``features`` as they are it regresses on ``hidden`` rectified combinations of them, random before any
    training and then learned: what makes an organ is seldom linear in the features. The values before any training are
    guesses.
    """

    def __init__(self, features: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, hidden)
        nn.init.normal_(self.hidden.weight, std=features**-0.5)
        nn.init.normal_(self.hidden.bias, std=0.5)
        self.log_scale = nn.Parameter(torch.zeros(features + hidden))
        self.log_penalty = nn.Parameter(torch.tensor(-5.0))
        self.elsewhere = nn.Parameter(torch.zeros(features + hidden + 1))
        """What is added to each feature's logarithmic penalty where slices of other volumes are learned from: what
        tells an organ within a volume need not do so in the next."""
        self.balance = nn.Parameter(torch.tensor(-1.0))
        """Logit of the share that the target's cells have of all weight."""
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        self.offset = nn.Parameter(torch.zeros(()))

    def scaled(self, features: torch.Tensor) -> torch.Tensor:
        """(N, features, h, w) -> what is regressed on, (N, d + 1, h, w) with d = features + hidden, the last of them
        being 1."""
        hidden = F.relu(F.conv2d(features, self.hidden.weight[:, :, None, None], self.hidden.bias))
        scales = self.log_scale.exp()[:, None, None]
        one = torch.ones_like(features[:, :1])
        return torch.cat([features * scales[: self.features], hidden * scales[self.features :], one], dim=1)

    def moments(self, scaled: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The sums x xᵀ (N, d + 1, d + 1) over all cells of N slices that are ``known`` (N, 1, S, S): the same for all
        labels that were annotated on the whole slices, and most of the work."""
        side = scaled.shape[-2], scaled.shape[-1]
        weight = F.adaptive_avg_pool2d(known, side).flatten(1) > 0.5
        return _outer(scaled.flatten(2).transpose(1, 2), weight.to(scaled))

    def sums(
        self, cells: torch.Tensor, shares: torch.Tensor, known: torch.Tensor, moments: torch.Tensor | None = None
    ) -> SliceSums:
        """``cells`` (N, K, d + 1), those of :meth:`scaled`; ``shares`` (N, K) in [0, 1] of the target, ``known`` (N, K)
        in [0, 1] how far that is truth."""
        inside, outside = shares * known, (1 - shares) * known
        everything = _outer(cells, known) if moments is None else moments
        inner = _few(cells, inside)
        return SliceSums(
            inner=inner,
            outer=everything - inner,
            inner_mean=torch.einsum("nk,nkd->nd", inside, cells),
            outer_mean=torch.einsum("nk,nkd->nd", outside, cells),
            inner_count=inside.sum(1),
            outer_count=outside.sum(1),
        )

    def regression(
        self, scaled: torch.Tensor, masks: torch.Tensor, known: torch.Tensor, moments: torch.Tensor | None = None
    ) -> Regression:
        """What N labelled slices say.

        Args:
            scaled: (N, d + 1, h, w), those of :meth:`scaled`.
            masks: (N, 1, S, S) in [0, 1], the target.
            known: (N, 1, S, S) in [0, 1], where the masks are truth.
            moments: Those of :meth:`moments` for the same ``known``, where they are there already.
        """
        side = scaled.shape[-2], scaled.shape[-1]
        known = F.adaptive_avg_pool2d(known, side).flatten(1)
        shares = F.adaptive_avg_pool2d(masks, side).flatten(1) * (known > 0.5)
        cells, counted = scaled.flatten(2).transpose(1, 2), (known > 0.5).to(shares)
        return Regression(self, self.sums(cells, shares, counted, moments))

    def solve(self, sums: SliceSums, across: torch.Tensor | None = None) -> torch.Tensor:
        """Ridge regression to y = 1 inside the target and -1 outside: w = (sum_i a_i x_i x_iᵀ + D)⁻¹ sum_i a_i y_i x_i.

        a_i balances target and background, D is diagonal with the learned penalties (Bertinetto et al., ICLR 2019, eq.
        4, with weights).

        Args:
            sums: Of Q selections of slices.
            across: (Q,) as in :meth:`Regression.solved`, 0 by default.

        Returns:
            Weights w (Q, d + 1).
        """
        across = torch.zeros(len(sums.inner_count)) if across is None else across
        share = self.balance.sigmoid()
        inner = share / sums.inner_count.clamp(min=1e-3)
        outer = (1 - share) / sums.outer_count.clamp(min=1e-3)
        matrix = inner[:, None, None] * sums.inner + outer[:, None, None] * sums.outer
        aim = inner[:, None] * sums.inner_mean - outer[:, None] * sums.outer_mean
        penalty = torch.full((matrix.shape[-1],), 1.0, dtype=matrix.dtype, device=matrix.device)
        penalty[-1] = 1e-3  # the offset is hardly one of the features
        penalties = penalty * (self.log_penalty + across[:, None].to(matrix) * self.elsewhere).exp()
        matrix = matrix + torch.diag_embed(penalties)
        factor = torch.linalg.cholesky(matrix)
        return torch.cholesky_solve(aim[..., None], factor)[..., 0]

    @torch.no_grad()
    def left_out(self, sums: SliceSums, weights: torch.Tensor, across: torch.Tensor | None = None) -> torch.Tensor:
        """How well each of Q selections of N slices does on itself, every slice answered by the others: (Q,) in [0, 1].

        ``weights`` (Q, N) as in :meth:`SliceSums.weighted`, ``across`` (Q,) as in :meth:`Regression.solved`. 1 is a
        perfect answer, 0 no better than none; 0 too where fewer than two slices show the target. The sums suffice: what
        the regression misses of a slice is a quadratic form in them.
        """
        across = torch.zeros(len(weights)) if across is None else across
        found = torch.zeros(len(weights))
        shows = sums.inner_count > 1.0  # a whole cell of the target: a guess
        share = self.balance.sigmoid()
        for row, chosen in enumerate(weights):
            rows = torch.nonzero(chosen > 0)[:, 0]
            if int(shows[rows].sum()) < 2:
                continue
            others = chosen[rows].expand(len(rows), -1) * (1 - torch.eye(len(rows)))
            some = sums[rows]
            solved = self.solve(some.weighted(others), across[row].expand(len(rows)))
            inside = _missed(solved, some.inner, some.inner_mean, some.inner_count)
            outside = _missed(-solved, some.outer, some.outer_mean, some.outer_count)
            error = share * inside.sum() / some.inner_count.sum() + (1 - share) * outside.sum() / some.outer_count.sum()
            found[row] = (1 - error / (4 * share * (1 - share))).clamp(0, 1)
        return found

    def logits(self, scaled: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``scaled`` (N, d + 1, h, w) and ``weights`` (N, d + 1) -> (N, h, w)."""
        answer = torch.bmm(weights[:, None], scaled.flatten(2))[:, 0] * self.sharpness + self.offset
        return answer.unflatten(1, scaled.shape[-2:])


def _missed(weights: torch.Tensor, matrix: torch.Tensor, mean: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Sums of (1 - x w)² over N slices, each with its own weights (N, d)."""
    square = torch.einsum("nd,nde,ne->n", weights, matrix, weights)
    return square - 2 * (weights * mean).sum(1) + count


def _outer(cells: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums of x xᵀ (N, d, d) over cells (N, K, d) with weights (N, K)."""
    return (cells * weight[..., None]).transpose(1, 2) @ cells


def _few(cells: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums of x xᵀ with weights that are mostly 0: only the cells that count are multiplied."""
    found = []
    for one, each in zip(cells, weight, strict=True):
        rows = each.nonzero()[:, 0]
        some = one[rows]
        found.append((some * each[rows, None]).T @ some)
    return torch.stack(found)
