"""The fit of what decides on masks past annotated ends."""

from __future__ import annotations

from dataclasses import astuple, fields

import numpy as np
import pytest

from ssmsam.evaluation.continuation_fit import Example, fitted
from ssmsam.fewshot.continuation import Claim, ContinuationConfig

TRUE = ContinuationConfig(
    intercept=-0.5, presence=1.0, loss=-4.0, loss_between=0.0, shrinks_mm=0.8, area=-1.0, overlap=2.0
)


def drawn(count: int, seed: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    claims = [Claim(*values) for values in rng.normal(0, 1, (count, len(fields(Claim))))]
    return [Example(one, bool(rng.random() < TRUE.chance(one)), ("set", "organ", "ends")) for one in claims]


def test_the_coefficients_behind_the_examples_are_found() -> None:
    found = fitted(drawn(8000, 0))
    for name in (one.name for one in fields(Claim)):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), abs=0.35), name
    likely = [found.chance(one.claim) > 0.5 for one in drawn(500, 1)]
    assert np.mean([guess == one.right for guess, one in zip(likely, drawn(500, 1), strict=True)]) > 0.85


def test_a_group_weighs_as_much_as_any_other() -> None:
    few = [Example(one.claim, True, ("set", "rare", "ends")) for one in drawn(20, 2)]
    many = [Example(one.claim, False, ("set", "common", "ends")) for one in drawn(2000, 3)]
    assert fitted(few + many).chance(Claim(*np.zeros(len(astuple(few[0].claim))))) == pytest.approx(0.5, abs=0.15)


def test_one_kind_of_examples_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="right and of masks that are wrong"):
        fitted([Example(one.claim, True, one.group) for one in drawn(5, 0)])
