"""What one method gains over another, case by case, from recorded results.

Both methods did the same tasks, so their difference is taken task by task and its interval is over patients: it says
far more than two intervals beside each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssmsam.report import Summary, summarise

MEAN = "mean over labels"

_Task = tuple[str, str, str, tuple[str, ...]]
"""Case, setting, label and support patients."""


def gains(
    first: Mapping[str, Any], second: Mapping[str, Any], method: str, over: str
) -> dict[str, dict[str, dict[str, Summary]]]:
    """Setting -> score -> label (and :data:`MEAN`) -> Dice of ``method`` in the result ``first`` minus that of ``over``
    in ``second``, which may be the same, with the interval over cases.

    Of tasks that both did; several of one case and label are averaged first. Raises ValueError when a result is not of
    a few-shot protocol or lacks the method, and when they share no task.
    """
    mine, theirs = _dice(first, method), _dice(second, over)
    differences: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for task in sorted(set(mine) & set(theirs)):
        case, setting, label, _ = task
        for score in sorted(set(mine[task]) & set(theirs[task])):
            differences[setting, score, label, case].append(mine[task][score] - theirs[task][score])
    if not differences:
        raise ValueError(f"{method} and {over} were not run on the same cases, labels and settings: nothing to compare")
    table: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (setting, score, label, case), values in differences.items():
        table[setting, score][label][case] = float(np.mean(values))
    found: dict[str, dict[str, dict[str, Summary]]] = defaultdict(dict)
    for (setting, score), labels in table.items():
        each = {label: summarise(cases.values()) for label, cases in labels.items()}
        everybody = sorted({case for cases in labels.values() for case in cases})
        means = [np.mean([cases[case] for cases in labels.values() if case in cases]) for case in everybody]
        found[setting][score] = {**each, MEAN: summarise(float(mean) for mean in means)}
    return dict(found)


def gains_table(found: Mapping[str, Mapping[str, Mapping[str, Summary]]]) -> list[str]:
    """Lines for people: points of Dice, the interval, and the number of cases."""
    lines = []
    for setting, scores in found.items():
        for score, labels in scores.items():
            lines.append(f"{setting}, {score}")
            for label, one in labels.items():
                low, high = one.ci95
                sure = "" if low <= 0 <= high else "  *"
                lines.append(f"  {label[:28]:28}{one.mean:+8.2f}   [{low:+.2f}, {high:+.2f}]  n {one.n}{sure}")
    return lines


def _dice(result: Mapping[str, Any], method: str) -> dict[_Task, dict[str, float]]:
    cases: Sequence[Mapping[str, Any]] = result.get("per_case", ())
    if not cases or "methods" not in cases[0]:
        raise ValueError(f"a result of {result.get('protocol')} compares no few-shot methods")
    if method not in result["methods"]:
        raise ValueError(f"the result has no method {method}; it has {', '.join(result['methods'])}")
    return {
        (case["case"], one["setting"], one["label"], tuple(one.get("supports", ()))): one["dice"]
        for case in cases
        for one in case["methods"].get(method, ())
    }
