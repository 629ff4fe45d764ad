"""The online optimiser in closed form: what it learns, that slices add up, and that its word on itself is honest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmsam.models.closed_form import ClosedFormOptimiser, SliceSums

D, SIDE = 5, 8


def optimiser(seed: int = 0) -> ClosedFormOptimiser:
    torch.manual_seed(seed)
    return ClosedFormOptimiser(D, hidden=3).double()


def slices(count: int, seed: int = 0, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D, SIDE, SIDE), the first of which shows the mask (N, 1, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, D, SIDE, SIDE, generator=generator, dtype=torch.double)
    masks = (features[:, :1] > 0.5).double()
    features[:, :1] = 2 * masks - 1 + noise * features[:, 1:2]
    return features, masks


def sums_of(one: ClosedFormOptimiser, features: torch.Tensor, masks: torch.Tensor) -> SliceSums:
    return one.regression(one.scaled(features), masks, torch.ones_like(masks)).sums


def test_it_finds_what_the_features_show() -> None:
    one = optimiser()
    features, masks = slices(3)
    weights = one.solve(sums_of(one, features[:2], masks[:2]).weighted(torch.ones(1, 2)))
    answer = one.logits(one.scaled(features[2:]), weights) > 0
    assert torch.equal(answer.reshape(SIDE, SIDE), masks[2, 0] > 0.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_further_slice_is_an_addition_and_leaving_one_out_a_subtraction(seed: int) -> None:
    one = optimiser()
    features, masks = slices(4, seed)
    sums = sums_of(one, features, masks)
    without = one.solve(sums.weighted(torch.tensor([[1.0, 1.0, 0.0, 1.0]])))
    anew = one.solve(sums_of(one, features[[0, 1, 3]], masks[[0, 1, 3]]).weighted(torch.ones(1, 3)))
    torch.testing.assert_close(without, anew)


def test_order_does_not_matter() -> None:
    one = optimiser()
    features, masks = slices(3)
    order = torch.tensor([2, 0, 1])
    first, second = (
        one.solve(sums_of(one, features[n], masks[n]).weighted(torch.ones(1, 3))) for n in (torch.arange(3), order)
    )
    torch.testing.assert_close(first, second)


def test_what_is_not_known_teaches_nothing() -> None:
    one = optimiser()
    features, masks = slices(2)
    known = torch.ones_like(masks)
    known[..., SIDE // 2 :] = 0
    spoilt = features.clone()
    spoilt[..., SIDE // 2 :] = 100.0
    chosen = torch.ones(1, 2)
    first, second = (
        one.regression(one.scaled(some), masks, known).sums.weighted(chosen) for some in (features, spoilt)
    )
    torch.testing.assert_close(one.solve(first), one.solve(second))


def test_the_solution_can_be_differentiated() -> None:
    one = optimiser()
    features, masks = slices(2)
    known = torch.ones_like(masks)

    def solved(penalty: torch.Tensor, balance: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        parameters = {"log_penalty": penalty, "balance": balance, "log_scale": scale}
        regress = torch.func.functional_call
        return regress(
            _Solve(one), {f"one.{name}": value for name, value in parameters.items()}, (features, masks, known)
        )

    given_ = [one.log_penalty.detach(), one.balance.detach(), one.log_scale.detach()]
    assert torch.autograd.gradcheck(solved, [value.clone().requires_grad_(True) for value in given_])


class _Solve(torch.nn.Module):
    def __init__(self, one: ClosedFormOptimiser) -> None:
        super().__init__()
        self.one = one

    def forward(self, features: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        regression = self.one.regression(self.one.scaled(features), masks, known)
        return self.one.solve(regression.sums.weighted(torch.ones(1, 2)))


def test_the_fit_is_high_where_features_show_the_target_and_low_where_they_do_not() -> None:
    one = optimiser()
    features, masks = slices(4)
    regression = one.regression(one.scaled(features), masks, torch.ones_like(masks))
    chance = one.regression(
        one.scaled(features), masks.flatten(2)[..., torch.randperm(SIDE**2)].reshape(masks.shape), masks * 0 + 1
    )
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert regression.solved(everything)[1].item() > 0.8
    assert chance.solved(everything)[1].item() < 0.3


@pytest.mark.parametrize("chosen", [[True, False, False], [False, False, False]])
def test_one_slice_or_none_says_nothing_of_the_fit(chosen: list[bool]) -> None:
    one = optimiser()
    features, masks = slices(3)
    weights, fit = one.regression(one.scaled(features), masks, torch.ones_like(masks)).solved(torch.tensor([chosen]))
    assert fit.item() == 0
    assert bool(weights.abs().sum() > 0) == any(chosen)


def test_moments_that_are_there_already_change_nothing() -> None:
    one = optimiser()
    features, masks = slices(3)
    scaled, known = one.scaled(features), torch.ones_like(masks)
    plain, quick = (
        one.regression(scaled, masks, known),
        one.regression(scaled, masks, known, one.moments(scaled, known)),
    )
    everything = torch.ones(1, 3, dtype=torch.bool)
    for first, second in zip(plain.solved(everything), quick.solved(everything), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_slices_of_other_volumes_have_a_penalty_of_their_own() -> None:
    one = optimiser()
    features, masks = slices(3)
    everything, across = torch.ones(1, 3, dtype=torch.bool), torch.ones(1)
    same = one.regression(one.scaled(features), masks, torch.ones_like(masks))
    torch.testing.assert_close(same.solved(everything)[0], same.solved(everything, across)[0])
    with torch.no_grad():
        one.elsewhere += 3.0
    other = one.regression(one.scaled(features), masks, torch.ones_like(masks))
    torch.testing.assert_close(same.solved(everything)[0], other.solved(everything)[0])
    assert other.solved(everything, across)[0].abs().sum() < other.solved(everything)[0].abs().sum()
