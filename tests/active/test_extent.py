"""Where an organ ends, from claims of presence and from slices that somebody looked at."""

from __future__ import annotations

import numpy as np
import pytest

from ssmsam.active.expected_gain import End, open_ends, presence_given

CLAIMS = np.concatenate([np.full(5, 0.05), np.full(10, 0.95), np.full(5, 0.05)])
SLICES = np.arange(20)


def test_an_organ_has_no_gap_and_ends_where_somebody_says() -> None:
    claims = np.full(20, 0.5)
    found = presence_given(claims, SLICES, {3: False, 8: True, 12: True, 15: False}, 5.0)
    assert (found[8:13] == 1).all()
    assert (found[:4] == 0).all() and (found[15:] == 0).all()
    assert (np.diff(found[12:16]) < 0).all() and (np.diff(found[3:9]) > 0).all()


def test_claims_stay_where_the_organ_was_not_seen() -> None:
    np.testing.assert_array_equal(presence_given(CLAIMS, SLICES, {}, 5.0), CLAIMS)
    found = presence_given(CLAIMS, SLICES, {7: False}, 5.0)
    assert found[7] == 0
    np.testing.assert_array_equal(np.delete(found, 7), np.delete(CLAIMS, 7))


def test_an_end_is_likely_where_the_claims_fall() -> None:
    found = presence_given(CLAIMS, SLICES, {10: True}, 10.0)
    assert found[14] > 0.7 and found[16] < 0.3
    assert found[5] > 0.7 and found[3] < 0.3


def test_many_claims_of_slices_that_look_alike_count_as_few() -> None:
    thin, thick = (presence_given(np.full(20, 0.9), SLICES, {10: True}, mm) for mm in (1.0, 20.0))
    assert thin[19] < 0.6 < 0.8 < thick[19]


def test_ends_are_between_what_shows_the_organ_and_what_does_not() -> None:
    found = {seen: rows.tolist() for seen, rows in open_ends(SLICES, {2: False, 6: True, 9: True, 17: False})}
    assert found == {6: [5, 4, 3], 9: list(range(10, 17))}
    assert [rows.tolist() for _, rows in open_ends(SLICES[::3], {9: True})] == [[2, 1, 0], [4, 5, 6]]


def test_the_best_look_at_an_end_is_in_the_middle_of_what_is_possible() -> None:
    end = End(np.arange(9), np.full(10, 0.1))
    errors = [end.error(np.ones(9), frozenset({row})) for row in range(9)]
    assert int(np.argmin(errors)) == 4
    assert end.error(np.ones(9)) == pytest.approx(2.5)  # the mean distance from the median of ten equally likely ends
    assert errors[4] == pytest.approx(1.2)
    assert end.error(np.ones(9), frozenset(range(9))) == 0


def test_no_look_makes_the_expected_error_larger() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        end = End(np.arange(8), rng.dirichlet(np.full(9, 0.5)))
        area, looked = rng.random(8), frozenset(rng.choice(8, 3, replace=False).tolist())
        assert end.error(area, looked | {int(rng.integers(8))}) <= end.error(area, looked) + 1e-9


def test_an_end_can_be_read_off_its_presences() -> None:
    end = End.claimed(np.arange(10, 15), np.array([0.9, 0.8, 0.4, 0.6, 0.1]), np.full(5, 8.0))
    again = End.read_off(end.rows, end.presence)
    np.testing.assert_allclose(again.chances, end.chances)
    assert end.chances.sum() == pytest.approx(1) and (np.diff(end.presence) <= 0).all()


def test_a_chance_that_rounding_made_negative_does_no_harm() -> None:
    end = End.read_off(np.array([0, 1]), np.array([0.0, -2e-17]))
    assert end.error(np.ones(2), frozenset({1})) == 0.0
