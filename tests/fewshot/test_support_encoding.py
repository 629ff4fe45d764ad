"""What a labelled slice says about its target."""

from __future__ import annotations

import torch

from ssmsam.models.support_encoding import CELLS, FOREGROUND_CELLS, KINDS, PARTS, SupportEncoding, TokenKind, describe

WIDTH, GRID, STRIDE, PER_CELL = 6, 8, 8, 4
SIDE = GRID * PER_CELL


def image(count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, WIDTH, GRID, GRID, generator=torch.Generator().manual_seed(seed))


def cells_filled(*cells: tuple[int, int]) -> torch.Tensor:
    """A mask that fills these (row, column) cells of the embedding, and nothing else."""
    mask = torch.zeros(1, 1, SIDE, SIDE)
    for row, column in cells:
        mask[..., row * PER_CELL : (row + 1) * PER_CELL, column * PER_CELL : (column + 1) * PER_CELL] = 1
    return mask


EVERYWHERE = torch.ones(1, 1, SIDE, SIDE)


def token(found: SupportEncoding, kind: TokenKind) -> torch.Tensor:
    return found.tokens[0, KINDS.index(kind)]


def test_an_empty_slice_has_surroundings_only() -> None:
    found = describe(image(), torch.zeros_like(EVERYWHERE), EVERYWHERE, STRIDE)
    assert found.kinds[0].tolist() == [TokenKind.NONE] * (2 + PARTS) + [TokenKind.FAR]
    assert not found.valid[:, :FOREGROUND_CELLS].any()
    assert int(found.valid.sum()) == GRID * GRID
    assert not found.shares[found.valid].any()
    torch.testing.assert_close(token(found, TokenKind.FAR), image()[0].mean((1, 2)))
    assert all(value.isfinite().all() for value in vars(found).values())


def test_an_organ_of_one_cell_is_that_cell() -> None:
    found, look = describe(image(), cells_filled((3, 5)), EVERYWHERE, STRIDE), image()[0]
    torch.testing.assert_close(token(found, TokenKind.TARGET), look[:, 3, 5])
    assert int(found.valid[0, :FOREGROUND_CELLS].sum()) == 1
    assert found.shares[0, 0] == 1
    torch.testing.assert_close(found.places[0, 0], torch.tensor([5 * STRIDE + 3.5, 3 * STRIDE + 3.5]))
    parts = [kind == TokenKind.PART for kind in found.kinds[0].tolist()]
    assert sum(parts) == 1, "one cell is one part"
    torch.testing.assert_close(found.tokens[0][torch.tensor(parts)][0], look[:, 3, 5])
    around = look[:, 1:6, 3:8].flatten(1).sum(1) - look[:, 3, 5]
    torch.testing.assert_close(token(found, TokenKind.RING), around / 24)


def test_a_cell_counts_by_how_much_of_it_the_target_fills() -> None:
    mask = cells_filled((2, 2))
    mask[..., 2 * PER_CELL : 2 * PER_CELL + PER_CELL // 2, 3 * PER_CELL : 4 * PER_CELL] = 1
    found, look = describe(image(), mask, EVERYWHERE, STRIDE), image()[0]
    torch.testing.assert_close(token(found, TokenKind.TARGET), (look[:, 2, 2] + look[:, 2, 3] / 2) / 1.5)
    assert sorted(found.shares[0][found.valid[0]].unique().tolist()) == [0, 0.5, 1]


def test_parts_of_different_look_get_tokens_of_their_own() -> None:
    look = torch.zeros(1, WIDTH, GRID, GRID)
    for column in range(PARTS):
        look[0, column, :, 2 * column] = 10
    cells = [(row, 2 * part) for part in range(PARTS) for row in range(GRID)]
    found = describe(look, cells_filled(*cells), EVERYWHERE, STRIDE)
    parts = found.tokens[0][[kind == TokenKind.PART for kind in KINDS]]
    assert sorted(parts.argmax(1).tolist()) == list(range(PARTS))
    torch.testing.assert_close(parts.amax(1), torch.full((PARTS,), 10.0))


def test_what_is_unknown_says_nothing() -> None:
    mask, known = cells_filled((3, 3), (3, 4)), EVERYWHERE.clone()
    known[..., SIDE // 2 :, :] = 0
    garbage, other = mask.clone(), image()
    garbage[..., SIDE // 2 :, :] = 1
    other[..., GRID // 2 :, :] = 99
    one, same = describe(image(), mask, known, STRIDE), describe(other, garbage, known, STRIDE)
    for name in ("kinds", "valid", "tokens"):
        assert torch.equal(getattr(one, name), getattr(same, name)), name
    for name in ("cells", "places", "shares"):
        assert torch.equal(getattr(one, name)[one.valid], getattr(same, name)[same.valid]), name
    assert (one.places[one.valid][:, 1] < GRID / 2 * STRIDE).all()


def test_a_slice_is_described_the_same_in_any_company() -> None:
    several = torch.cat([cells_filled((3, 3), (3, 4), (4, 4)), cells_filled(), cells_filled((0, 0))])
    known = EVERYWHERE.expand(3, -1, -1, -1)
    together = describe(image(3), several, known, STRIDE)
    assert together.cells.shape == (3, CELLS, WIDTH)
    again = describe(image(3), several, known, STRIDE)
    for number in range(3):
        one = slice(number, number + 1)
        alone = describe(image(3)[one], several[one], known[one], STRIDE)
        for name, value in vars(alone).items():
            assert torch.equal(getattr(together, name), getattr(again, name)), name
            torch.testing.assert_close(getattr(together, name)[one], value, msg=name)
