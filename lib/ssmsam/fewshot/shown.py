"""From descriptions of support slices to what the decoder is shown for each query."""

from __future__ import annotations

import torch

from ssmsam.fewshot.decoder import ATLAS_MAPS, Shown
from ssmsam.fewshot.description import Description, TokenKind


def shown_to(
    description: Description,
    supports: torch.Tensor,
    near: torch.Tensor,
    prior: torch.Tensor,
    trust: torch.Tensor,
    *,
    moves: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    fit: torch.Tensor | None = None,
    atlas: torch.Tensor | None = None,
) -> Shown:
    """Gather for N queries what each is shown of K described slices.

    ``supports`` (N, S) numbers among the K, -1 for none; ``near`` (N, S) closeness of each to the query;
    ``prior`` (N, 1, H, W) and ``trust`` (N, 2) as in :class:`Shown`. ``moves`` (N, S, 2) are added to the places of
    each slice's cells, (x, y) in input pixels. ``weights`` and ``fit`` are those of the online optimiser, ``atlas`` the
    maps of registered volumes.
    """
    given = supports >= 0
    gathered = description[supports.clamp(min=0).flatten()]
    count, several = supports.shape

    def per_query(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (count, several)).flatten(1, 2)

    def spread(x: torch.Tensor, times: int) -> torch.Tensor:
        return x[:, :, None].expand(-1, -1, times).flatten(1)

    tokens, cells = gathered.kinds.shape[1], gathered.valid.shape[1]
    places = per_query(gathered.places)
    if moves is not None:
        places = places + moves.repeat_interleave(cells, dim=1)
    return Shown(
        tokens=per_query(gathered.tokens),
        kinds=torch.where(spread(given, tokens), per_query(gathered.kinds), int(TokenKind.NONE)),
        near=spread(near, tokens),
        cells=per_query(gathered.cells),
        places=places,
        shares=per_query(gathered.shares),
        cells_near=spread(near, cells),
        valid=spread(given, cells) & per_query(gathered.valid),
        prior=prior,
        trust=trust,
        weights=trust.new_zeros(count, 0) if weights is None else weights,
        fit=trust.new_zeros(count, 1) if fit is None else fit,
        atlas=prior.new_zeros(count, ATLAS_MAPS, *prior.shape[-2:]) if atlas is None else atlas,
    )
