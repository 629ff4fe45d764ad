"""What of the labelled slices is the context of a query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ssmsam.embeddings.embedder import slice_descriptors
from ssmsam.fewshot.config import SupportBankConfig
from ssmsam.fewshot.support_bank import Places, SupportBank, interpolated, interpolated_error
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


STACK = np.array([0.0, 10.0, 20.0, 30.0, 50.0])


def a_stack(
    count: int = len(STACK), unknown: torch.Tensor | None = None, told: Sequence[int] | None = None
) -> SupportBank:
    """Slices of one volume, whose masks grow; those ``told``, by default all, were answered by nothing when held
    out."""
    masks = torch.zeros(count, 1, SIDE, SIDE)
    for number in range(count):
        masks[number, :, 2 : 6 + number, 3:9] = 1
    known = torch.ones_like(masks) if unknown is None else 1 - unknown
    places = Places(("a",) * count, STACK[:count], CENTRES[:count], np.full(count, 2.5))
    bank = SupportBank.from_tensors(images(count), masks, known, unknown=unknown, stride=STRIDE, places=places)
    numbers = range(count) if told is None else told
    return bank.with_errors(numbers, np.full((len(numbers), SIDE, SIDE), -9.0))


def test_what_was_missed_on_held_out_slices_is_interpolated_between_them() -> None:
    """What was missed on the outermost slices tells nothing: it was extrapolated."""
    bank = a_stack()
    _, first, second, third, _ = (bank.distances > 0).astype(float)
    for position, expected in ((5.0, first / 2), (15.0, (first + second) / 2), (40.0, third / 2), (70.0, 0 * third)):
        found = queried(bank, "a", position).error[0, 0].numpy()
        np.testing.assert_allclose(found, expected, atol=0.001)


def test_slices_that_were_not_held_out_do_not_count_as_answered_rightly() -> None:
    """Of many annotated slices only some are held out."""
    bank = a_stack(told=(1, 3))
    first, third = ((bank.distances[k] > 0).astype(float) for k in (1, 3))
    np.testing.assert_allclose(queried(bank, "a", 20.0).error[0, 0].numpy(), (first + third) / 2, atol=0.001)


def test_decoder_and_interpolation_are_judged_on_slices_between_others() -> None:
    bank = a_stack()
    shapes = []
    for number in (1, 2, 3):
        others = {float(STACK[k]): bank.distances[k] for k in range(5) if k != number}
        shape = interpolated(others, float(STACK[number]), (SIDE, SIDE)).distance > 0
        truth = bank.distances[number] > 0
        shapes.append(2 * (shape & truth).sum() / (shape.sum() + truth.sum()))
    decoder, interpolation, _, _ = queried(bank, "a", 25.0).held_out[0].tolist()
    assert decoder == 0 and interpolation == pytest.approx(np.mean(shapes))


def test_a_query_knows_how_many_slices_were_held_out_and_how_much_further_from_others_they_were() -> None:
    """Three slices: the middle one was answered from 10 mm away, half of that is what lies between the query and it."""
    for count, position, expected in ((3, 5.0, (1 / 2, 0.5)), (3, 12.0, (1 / 2, 0.2)), (4, 10.0, (2 / 3, 0.0))):
        found = queried(a_stack(count), "a", position)
        assert found.error.any() and found.held_out[0, 2:].tolist() == pytest.approx(expected)
    assert queried(a_stack(3), "a", 90.0).held_out[0, 3] == 1
    assert not queried(a_stack(2), "a", 5.0).held_out.any()


def test_nothing_of_a_slice_that_is_held_out_reaches_its_own_answer_by_the_errors_of_others() -> None:
    """They were found with this slice as context."""
    bank = a_stack()
    assert queried(bank, "a", 20.0).error.any()
    for found in (queried(bank, "a", 10.0, without=[1]), queried(bank, "b", 5.0)):
        assert not found.error.any() and not found.held_out.any()


def test_where_a_mask_is_no_truth_nothing_was_missed() -> None:
    unknown = torch.zeros(5, 1, SIDE, SIDE)
    unknown[..., :5, :] = 1
    error = a_stack(unknown=unknown).errors[2]
    assert not error[:5].any() and error[5:8, 3:9].min() > 0.9


def test_the_error_of_one_slice_holds_everywhere() -> None:
    error = np.full((2, 2), 0.5, dtype=np.float32)
    np.testing.assert_array_equal(interpolated_error({3.0: error}, 90.0, (2, 2)), [error, error])
    assert not interpolated_error({}, 90.0, (2, 2)).any()
