"""From the records of strategies to one result: curves, slices needed, and whether expectations are reliable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.evaluation.active import BASELINE, OTHER, WHOLE
from ssmsam.evaluation.clicks import Record, label_summaries
from ssmsam.evaluation.figures import draw_curves, draw_reliability
from ssmsam.evaluation.metrics import mean_over_labels

RESAMPLES = 500


def curves(records: Sequence[Record], score: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Strategy -> annotated slices -> mean over labels of means over cases of means over seeds, and each label's."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for strategy in dict.fromkeys(record["strategy"] for record in records):
        own = [record for record in records if record["strategy"] == strategy]
        for n in sorted({record["n"] for record in own}):
            per_label = label_summaries([record for record in own if record["n"] == n], score)
            found.setdefault(strategy, {})[n] = {
                "mean_dice": round(mean_over_labels(per_label), 3),
                "per_label": {label: summary.as_json() for label, summary in per_label.items()},
            }
    return found


def slices_needed(curve: Mapping[int, float], target: float) -> float | None:
    """How many slices reach a Dice, between two numbers in proportion; None when the curve never does."""
    best, before = -np.inf, 0
    for n, value in sorted(curve.items()):
        if value >= target:
            share = 1.0 if not np.isfinite(best) else (target - best) / (value - best)
            return before + share * (n - before)
        if value > best:
            best = value
        before = n
    return None


def slices_ratio(records: Sequence[Record], strategy: str, score: str, *, baseline: str = BASELINE) -> dict[str, Any]:
    """Slices that a strategy needs over those that the baseline needs, for the best Dice of the baseline.

    The mean over labels, with a 95 % bootstrap interval over patients. What a strategy does not reach counts as one
    slice more than the budget; ``not_reached`` says for how many labels.
    """
    cases = sorted({record["case"] for record in records})
    table = _table([r for r in records if r["strategy"] in (strategy, baseline)], score)
    ratios, missed = _ratios(table, cases, strategy, baseline)
    rng = np.random.default_rng(0)
    means = [
        np.mean(list(_ratios(table, list(rng.choice(cases, len(cases))), strategy, baseline)[0].values()))
        for _ in range(RESAMPLES if len(cases) > 1 else 0)
    ]
    interval = [round(float(end), 3) for end in np.percentile(means, (2.5, 97.5))] if means else None
    return {
        "mean": round(float(np.mean(list(ratios.values()))), 3),
        "ci95": interval,
        "per_label": {label: round(ratio, 3) for label, ratio in ratios.items()},
        "not_reached": missed,
    }


def _table(records: Sequence[Record], score: str) -> dict[tuple[str, str, str], dict[int, float]]:
    """(strategy, label, case) -> annotated slices -> mean over seeds."""
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for record in records:
        key = record["strategy"], record["label"], record["case"]
        values.setdefault(key, {}).setdefault(record["n"], []).append(record["dice"][score])
    return {key: {n: float(np.mean(found)) for n, found in curve.items()} for key, curve in values.items()}


def _ratios(
    table: Mapping[tuple[str, str, str], Mapping[int, float]], cases: Sequence[str], strategy: str, baseline: str
) -> tuple[dict[str, float], int]:
    """Label -> ratio over some cases, which may repeat, and how many labels never reached the baseline's best."""
    ratios, missed = {}, 0
    for label in sorted({label for _, label, _ in table}):
        own, other = (
            _mean_curve([table[name, label, case] for case in cases if (name, label, case) in table])
            for name in (strategy, baseline)
        )
        if not own or not other:
            continue
        target = max(other.values())
        reached = slices_needed(own, target)
        missed += reached is None
        ratios[label] = (max(own) + 1 if reached is None else reached) / (slices_needed(other, target) or 1.0)
    return ratios, missed


def _mean_curve(several: Sequence[Mapping[int, float]]) -> dict[int, float]:
    shared = set[int]().union(*several) if several else set()
    return {n: float(np.mean([one[n] for one in several if n in one])) for n in sorted(shared)}


def reliability(records: Sequence[Record]) -> dict[str, Any]:
    """Whether expectations hold: of the volume's Dice as correlation and bias, of slices bin by bin."""
    expected = np.array([record["expected_dice"] for record in records])
    true = np.array([record["dice"][OTHER] for record in records])
    varied = len(records) > 2 and expected.std() > 0 and true.std() > 0
    found: dict[str, Any] = {
        "volume_dice": {
            "correlation": round(float(np.corrcoef(expected, true)[0, 1]), 3) if varied else None,
            "bias": round(float((expected - true).mean()), 3),
            "mean_absolute_error": round(float(np.abs(expected - true).mean()), 3),
            "n": len(records),
        }
    }
    for name in records[0]["reliability"]:
        bins = np.sum([record["reliability"][name] for record in records], axis=0)
        filled = bins[bins[:, 0] > 0]
        gaps = np.abs(filled[:, 1] - filled[:, 2])
        found[name] = {
            "bins": [[int(c), round(e / c, 4), round(t / c, 4)] for c, e, t in filled.tolist()],
            "expected_calibration_error": round(float(gaps.sum() / filled[:, 0].sum()), 4) if len(filled) else None,
        }
    return found


def draw_active(folder: Path, result: dict[str, Any], name: str) -> list[Path]:
    """Dice against annotated slices for each score, and the reliability diagrams. Returns the files."""
    drawn = []
    for score in (OTHER, WHOLE):
        lines = {s: {int(n): one["mean_dice"] for n, one in c.items()} for s, c in result["curves"][score].items()}
        path = folder / f"active_{score}.png".replace(" ", "_")
        drawn.append(draw_curves(path, lines, title=f"{name}: {score}", x_label="annotated slices"))
    diagrams = {kind: one["bins"] for kind, one in result["reliability"].items() if "bins" in one}
    drawn.append(draw_reliability(folder / "active_reliability.png", diagrams, title=name))
    return drawn
