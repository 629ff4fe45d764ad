"""What of the labelled slices is the context of a query."""

from __future__ import annotations

import numpy as np
import torch

from ssmsam.embeddings.embedder import slice_descriptors
from ssmsam.fewshot.config import SupportBankConfig
from ssmsam.fewshot.support_bank import Places, SupportBank, interpolated
from ssmsam.models.prompt_small import closeness
from ssmsam.models.support_encoding import CELLS, KINDS, TokenKind

WIDTH, GRID, SIDE, STRIDE = 6, 4, 16, 8
VOLUMES = ("a", "a", "a", "b", "b")
POSITIONS = np.array([0.0, 10.0, 30.0, 0.0, 10.0])
CENTRES = np.array([[16.0, 16.0], [16.0, 17.0], [15.0, 16.0], [12.0, 9.0], [12.0, 10.0]])
HERE = np.array([[18.0, 12.0]])
"""The body's centre on a query."""


def images(count: int = len(VOLUMES), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, WIDTH, GRID, GRID, generator=torch.Generator().manual_seed(seed))


def a_bank() -> SupportBank:
    masks = torch.zeros(len(VOLUMES), 1, SIDE, SIDE)
    for number in range(len(VOLUMES)):
        masks[number, :, 2 : 6 + number, 3:9] = 1
    return SupportBank.from_tensors(
        images(),
        masks,
        torch.ones_like(masks),
        stride=STRIDE,
        places=Places(VOLUMES, POSITIONS, CENTRES, np.full(len(VOLUMES), 2.5)),
    )


def context_slices(bank: SupportBank, tokens: torch.Tensor, kinds: torch.Tensor) -> list[int]:
    """Which of the bank's slices are in a query's context, by their tokens."""
    each = tokens.unflatten(0, (-1, len(KINDS)))
    given = (kinds.unflatten(0, (-1, len(KINDS))) != TokenKind.NONE).any(1)
    return [
        number for one in each[given] for number in range(len(bank)) if torch.equal(one, bank.encoding.tokens[number])
    ]


def queried(bank: SupportBank, volume: str, position: float, *, config: SupportBankConfig | None = None, without=()):
    slice_vectors = slice_descriptors(images(1, seed=5))
    return bank.context_at(
        volume, [position], slice_vectors, HERE, config=config or SupportBankConfig(), without=without
    )


def test_cells_of_other_volumes_are_shown_where_they_would_be_in_the_query_s_body() -> None:
    bank = a_bank()
    context = queried(bank, "a", 10.0)
    places = context.places[0].unflatten(0, (len(VOLUMES), CELLS)).numpy()
    kept = bank.encoding.places.numpy()
    np.testing.assert_array_equal(places[:3], kept[:3])  # its own volume lies as it lies
    for number in (3, 4):
        np.testing.assert_allclose(places[number], kept[number] + HERE - CENTRES[number], rtol=1e-6)


def test_a_query_is_never_shown_a_hidden_slice() -> None:
    bank = a_bank()
    context = queried(bank, "a", 10.0, without=(1, 4))
    assert context_slices(bank, context.tokens[0], context.kinds[0]) == [0, 2, 3]
    known = {0.0: bank.distances[0], 30.0: bank.distances[2]}
    expected = interpolated(known, 10.0, (SIDE, SIDE))
    np.testing.assert_array_equal(context.prior[0, 0].numpy(), expected.distance)
    hidden = bank.encoding.cells[1][bank.encoding.valid[1]]
    assert not torch.isin(context.cells[0][context.valid[0]], hidden).any()


def test_slices_of_other_volumes_give_no_prior() -> None:
    bank = a_bank()
    context = queried(bank, "c", 10.0)
    assert context_slices(bank, context.tokens[0], context.kinds[0]) == [0, 1, 2, 3, 4]
    for silent in (context.prior, context.trust, context.near, context.cells_near):
        assert not silent.any()


def test_own_slices_say_how_near_they_are() -> None:
    context = queried(a_bank(), "b", 4.0)
    near = context.near[0].unflatten(0, (-1, len(KINDS)))
    assert (near == near[:, :1]).all()
    torch.testing.assert_close(near[:, 0], torch.tensor([0, 0, 0, closeness(4), closeness(6)]))
    cells_near = context.cells_near[0].unflatten(0, (-1, CELLS))
    torch.testing.assert_close(cells_near[:, 7], near[:, 0])
    torch.testing.assert_close(context.trust[0], torch.tensor([1.0, closeness(4)]))


def test_of_many_slices_the_nearest_and_the_most_alike_are_shown() -> None:
    bank = a_bank()
    config = SupportBankConfig(own=1, others=1)
    context = queried(bank, "a", 24.0, config=config)
    likeness = slice_descriptors(images(1, seed=5)) @ bank.descriptors[3:].T
    assert context_slices(bank, context.tokens[0], context.kinds[0]) == [2, 3 + int(likeness.argmax())]
    prompted_by_one = queried(bank, "a", 24.0, config=SupportBankConfig(own=1, others=0)).trust[0]
    torch.testing.assert_close(prompted_by_one, torch.tensor([0.0, closeness(6)]))


def test_a_look_ignores_brightness_and_contrast() -> None:
    torch.testing.assert_close(slice_descriptors(images() * 3 + 7), slice_descriptors(images()))
    torch.testing.assert_close(slice_descriptors(images()).norm(dim=1), torch.ones(len(VOLUMES)))
