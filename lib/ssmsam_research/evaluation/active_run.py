"""Running "active" over a labelled set: cases in parallel, resumable organ by organ, to one result."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ssmsam_research.evaluation.active import BASELINES, OTHER, WHOLE, ActiveProtocol, Learner, measure_label
from ssmsam_research.evaluation.active_summary import curves, reliability, slices_ratio
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.prompted import ModelChoice, loaded
from ssmsam_research.evaluation.run import Run


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
