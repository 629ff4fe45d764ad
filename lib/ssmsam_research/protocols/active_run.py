"""From the records of strategies to one result: curves, slices needed, and whether expectations are reliable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmsam.report import mean_over_labels
from ssmsam_research.figures.curves import draw_curves, draw_reliability
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.model_choice import ModelChoice, loaded
from ssmsam_research.protocols.active import BASELINES, OTHER, WHOLE, ActiveProtocol, Learner, measure_label
from ssmsam_research.protocols.clicks import Record, label_summaries
from ssmsam_research.run import Run

RESAMPLES = 500
Table = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(strategy, label, case) -> annotated slices -> mean over seeds."""


def curves(records: Sequence[Record], score: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Strategy -> annotated slices -> mean over labels of means over cases of means over seeds, and each label's.

    With a 95 % bootstrap interval over patients, the same patients for all labels at a time.
    """
    cases = sorted({record["case"] for record in records})
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for strategy in dict.fromkeys(record["strategy"] for record in records):
        own = [record for record in records if record["strategy"] == strategy]
        table = _table(own, score)
        for n in sorted({record["n"] for record in own}):
            per_label = label_summaries([record for record in own if record["n"] == n], score)
            found.setdefault(strategy, {})[n] = {
                "mean_dice": round(mean_over_labels(per_label), 3),
                "ci95": interval(cases, partial(_mean_at, table, strategy, n)),
                "per_label": {label: summary.as_json() for label, summary in per_label.items()},
            }
    return found


def interval(cases: Sequence[str], value: Callable[[Sequence[str]], float]) -> list[float] | None:
    """95 % bootstrap interval of a value of cases, which may repeat; None for a single case."""
    if len(cases) < 2:
        return None
    rng = np.random.default_rng(0)
    drawn = [value(rng.choice(cases, len(cases)).tolist()) for _ in range(RESAMPLES)]
    return [round(float(end), 3) for end in np.nanpercentile(drawn, (2.5, 97.5))]


def _mean_at(table: Table, strategy: str, n: int, cases: Sequence[str]) -> float:
    """Dice after n slices: the mean over labels of means over some cases; NaN when these have none."""
    values: dict[str, list[float]] = {}
    for (name, label, case), curve in table.items():
        if name == strategy and n in curve:
            values.setdefault(label, []).extend([curve[n]] * list(cases).count(case))
    means = [np.mean(found) for found in values.values() if found]
    return float(np.mean(means)) if means else float("nan")


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


def slices_ratio(
    records: Sequence[Record], strategy: str, score: str, *, baseline: str = BASELINES[0]
) -> dict[str, Any]:
    """Slices that a strategy needs over those that the baseline needs, for the best Dice of the baseline.

    The mean over labels, with a 95 % bootstrap interval over patients. What a strategy does not reach counts as one
    slice more than the budget; ``not_reached`` says for how many labels.
    """
    cases = sorted({record["case"] for record in records})
    table = _table([r for r in records if r["strategy"] in (strategy, baseline)], score)
    ratios, missed = _ratios(table, cases, strategy, baseline)
    return {
        "mean": round(float(np.mean(list(ratios.values()))), 3),
        "ci95": interval(cases, lambda drawn: _mean_ratio(table, drawn, strategy, baseline)),
        "per_label": {label: round(ratio, 3) for label, ratio in ratios.items()},
        "not_reached": missed,
    }


def _table(records: Sequence[Record], score: str) -> Table:
    """(strategy, label, case) -> annotated slices -> mean over seeds."""
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for record in records:
        key = record["strategy"], record["label"], record["case"]
        values.setdefault(key, {}).setdefault(record["n"], []).append(record["dice"][score])
    return {key: {n: float(np.mean(found)) for n, found in curve.items()} for key, curve in values.items()}


def _ratios(table: Table, cases: Sequence[str], strategy: str, baseline: str) -> tuple[dict[str, float], int]:
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


def _mean_ratio(table: Table, cases: Sequence[str], strategy: str, baseline: str) -> float:
    return float(np.mean(list(_ratios(table, cases, strategy, baseline)[0].values())))


def _mean_curve(several: Sequence[Mapping[int, float]]) -> dict[int, float]:
    shared = set[int]().union(*several) if several else set()
    return {n: float(np.mean([one[n] for one in several if n in one])) for n in sorted(shared)}


def reliability(records: Sequence[Record]) -> dict[str, Any]:
    """Whether expectations hold: of Dice as correlation and bias, of slices bin by bin.

    ``volume_dice`` is what the mask expects of itself, ``held_out_dice`` what the slices held out tell.
    """
    found: dict[str, Any] = {
        "volume_dice": agreement([(record["expected_dice"], record["dice"][OTHER]) for record in records]),
        "held_out_dice": agreement(
            [(one["estimate"], one["dice"][OTHER]) for one in records if one["estimate"] is not None]
        ),
    }
    for name in dict.fromkeys(name for record in records for name in record["reliability"]):
        bins = np.sum([r["reliability"][name] for r in records if name in r["reliability"]], axis=0)
        filled = bins[bins[:, 0] > 0]
        gaps = np.abs(filled[:, 1] - filled[:, 2])
        found[name] = {
            "bins": [[int(c), round(e / c, 4), round(t / c, 4)] for c, e, t in filled.tolist()],
            "expected_calibration_error": round(float(gaps.sum() / filled[:, 0].sum()), 4) if len(filled) else None,
        }
    return found


def agreement(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How (expected, true) numbers go together; None where nothing can be said."""
    expected, true = np.array(pairs, dtype=float).reshape(-1, 2).T
    varied = len(pairs) > 2 and expected.std() > 0 and true.std() > 0
    return {
        "correlation": round(float(np.corrcoef(expected, true)[0, 1]), 3) if varied else None,
        "bias": round(float((expected - true).mean()), 3) if pairs else None,
        "mean_absolute_error": round(float(np.abs(expected - true).mean()), 3) if pairs else None,
        "n": len(pairs),
    }


def draw_active(folder: Path, result: dict[str, Any], name: str) -> list[Path]:
    """Dice against annotated slices for each score, and the reliability diagrams. Returns the files."""
    drawn = []
    for score in (OTHER, WHOLE):
        found = result["curves"][score].items()
        lines = {strategy: {int(n): one["mean_dice"] for n, one in curve.items()} for strategy, curve in found}
        bands = {
            strategy: {int(n): one["ci95"] for n, one in curve.items() if one.get("ci95")} for strategy, curve in found
        }
        path = folder / f"active_{score}.png".replace(" ", "_")
        title = f"{name}: {score}"
        drawn.append(draw_curves(path, lines, bands=bands, title=title, x_label="annotated slices"))
    diagrams = {kind: one["bins"] for kind, one in result["reliability"].items() if "bins" in one}
    drawn.append(draw_reliability(folder / "active_reliability.png", diagrams, title=name))
    return drawn


@dataclass(frozen=True)
class ActiveRun(Run[Case]):
    """The strategies of the protocol on the queries."""

    protocol: ActiveProtocol
    queries: LabelledSet
    model: ModelChoice
    weights_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.as_json(),
            "set": self.queries.manifest(),
            "labels": dict(self.queries.label_names),
            "encoder": [self.model.encoder, self.weights_sha256],
        }

    def units(self) -> Sequence[Case]:
        return self.queries.cases

    def measure(self, unit: Case, finished: Collection[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        for label, records in measure_case(unit, self, finished):
            yield piece(unit, label), records

    def result(self, pieces: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
        records = [
            {"case": case.name, **record}
            for case in self.queries.cases
            for name, found in sorted(pieces.items())
            if name.startswith(f"{case.name} / ")
            for record in found
        ]
        return active_result(self, records)


def piece(case: Case, label: str) -> str:
    """The name in the log of one organ of one case."""
    return f"{case.name} / {label}"


def measure_case(
    case: Case, run: ActiveRun, finished: Collection[str] = ()
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(label, records) of the organs of a case that are not finished."""
    torch.set_num_threads(run.threads)
    volume, labels = case.read()
    targets = [(name, mask) for name, mask in run.queries.targets(labels) if piece(case, name) not in finished]
    if not targets:
        return
    model = loaded(run.model)
    query = model.embedder.open(volume)
    query.embed()
    for label, truth in targets:
        learner = Learner(query, model.embedder, model.target, steps=run.protocol.steps)
        yield label, measure_label(learner, label, truth, run.protocol)


def active_result(run: ActiveRun, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a run. Raises ValueError when nothing could be measured."""
    if not records:
        raise ValueError(f"nothing to measure: no case of {run.queries.name} holds a wanted label")
    strategies = run.protocol.strategies
    found = {score: curves(records, score) for score in (OTHER, WHOLE)}
    last = found[OTHER][strategies[0]]
    headline = f"{strategies[0]} / {max(last)} slices / {OTHER}"
    return run.record(
        protocol="active",
        method=", ".join(strategies),
        settings={**run.protocol.as_json(), "headline": headline},
        data=run.queries.manifest(),
        weights={run.model.encoder: run.weights_sha256},
        device=run.model.device,
        mean_dice=last[max(last)]["mean_dice"],
        per_label=last[max(last)]["per_label"],
        curves=found,
        **{
            f"slices_ratio_to_{baseline}": {
                score: {
                    name: slices_ratio(records, name, score, baseline=baseline)
                    for name in strategies
                    if name != baseline
                }
                for score in found
            }
            for baseline in BASELINES
            if baseline in strategies
        },
        reliability=reliability(records),
        per_case=[
            {"case": case.name, "records": [_short(record) for record in records if record["case"] == case.name]}
            for case in run.queries.cases
        ],
    )


def _short(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("case", "reliability")}
