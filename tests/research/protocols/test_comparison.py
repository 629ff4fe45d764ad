"""What one method gains over another is taken task by task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssmsam_research.protocols.gains import MEAN, gains, gains_table


def result(**methods: dict[tuple[str, str], float]) -> dict[str, Any]:
    """A recorded result: method -> (case, label) -> Dice."""
    cases = sorted({case for found in methods.values() for case, _ in found})
    records = [
        {
            "case": case,
            "methods": {
                name: [
                    {"label": label, "setting": "5 slices", "dice": {"volume": dice}}
                    for (one, label), dice in found.items()
                    if one == case
                ]
                for name, found in methods.items()
            },
        }
        for case in cases
    ]
    return {"protocol": "complete", "methods": dict.fromkeys(methods), "per_case": records}


def test_differences_are_paired_by_case_and_label() -> None:
    hard = {("a", "liver"): 90.0, ("b", "liver"): 30.0, ("a", "spleen"): 80.0}
    better = {task: dice + 2.0 for task, dice in hard.items()}
    found = gains(result(old=hard, new=better), result(old=hard, new=better), "new", "old")["5 slices"]["volume"]
    for label, count in (("liver", 2), ("spleen", 1), (MEAN, 2)):
        assert found[label].mean == pytest.approx(2.0) and found[label].n == count
        # the cases differ by 60 points and the methods always by 2: nothing is left open
        assert found[label].ci95 == pytest.approx((2.0, 2.0))


def test_only_tasks_that_both_did_are_compared_also_across_files() -> None:
    mine, theirs = {("a", "liver"): 90.0, ("b", "liver"): 50.0}, {("a", "liver"): 85.0, ("c", "liver"): 10.0}
    found = gains(result(new=mine), result(old=theirs), "new", "old")["5 slices"]["volume"]
    assert found["liver"].mean == pytest.approx(5.0) and found["liver"].n == 1
    with pytest.raises(ValueError, match="nothing to compare"):
        gains(result(new={("a", "liver"): 1.0}), result(old={("b", "liver"): 1.0}), "new", "old")


def test_gains_change_their_sign_with_the_direction() -> None:
    rng = np.random.default_rng(0)
    tasks = [(case, label) for case in "abcd" for label in ("liver", "spleen")]
    both = result(x={t: float(rng.uniform(50, 90)) for t in tasks}, y={t: float(rng.uniform(50, 90)) for t in tasks})
    there, back = (gains(both, both, *pair)["5 slices"]["volume"] for pair in (("x", "y"), ("y", "x")))
    for label, one in there.items():
        assert back[label].mean == pytest.approx(-one.mean)
    assert len(gains_table(gains(both, both, "x", "y"))) == 1 + len(there)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ValueError, match="it has old"):
        gains(result(old={("a", "liver"): 1.0}), result(old={("a", "liver"): 1.0}), "new", "old")
    with pytest.raises(ValueError, match="compares no few-shot methods"):
        gains({"protocol": "clicks", "per_case": [{"case": "a"}], "methods": {}}, {}, "x", "y")
