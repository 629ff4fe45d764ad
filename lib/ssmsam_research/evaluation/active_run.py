"""Running "active" over a labelled set: cases in parallel, resumable organ by organ, to one result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import torch

from ssmsam.progress import Progress, silent
from ssmsam.report import run_manifest
from ssmsam_research.evaluation.active import BASELINES, OTHER, WHOLE, ActiveProtocol, Learner, measure_label
from ssmsam_research.evaluation.active_summary import curves, reliability, slices_ratio
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.prompted import ModelChoice, PromptedModel
from ssmsam_research.evaluation.results import RunLog


@dataclass(frozen=True)
class ActiveRun:
    """What is run: the protocol on the queries, ``jobs`` cases at a time with ``threads`` each."""

    protocol: ActiveProtocol
    queries: LabelledSet
    model: ModelChoice
    weights_sha256: str
    jobs: int = 1
    threads: int = 1

    @property
    def key(self) -> str:
        """Changes with everything that changes the records."""
        parts = {
            "protocol": self.protocol.as_json(),
            "set": self.queries.manifest(),
            "labels": dict(self.queries.label_names),
            "encoder": [self.model.encoder, self.weights_sha256],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def run(self, log: RunLog | None = None, *, progress: Progress = silent) -> dict[str, Any]:
        """Measure all cases and put the result together. Organs that ``log`` has are not measured again."""
        finished: dict[str, list[dict[str, Any]]] = log.read() if log else {}
        cases = {case.name: case for case in self.queries.cases}
        progress("cases", 0, len(cases))
        for number, (case, found) in enumerate(self._measure(finished, log), 1):
            finished.update({piece(case, label): records for label, records in found.items()})
            progress("cases", number, len(cases))
        records = [
            {"case": name, **record}
            for name in cases
            for label_piece, found in sorted(finished.items())
            if label_piece.startswith(f"{name} / ")
            for record in found
        ]
        return active_result(self, records)

    def _measure(
        self, finished: Collection[str], log: RunLog | None
    ) -> Iterator[tuple[Case, dict[str, list[dict[str, Any]]]]]:
        cases = self.queries.cases
        if self.jobs == 1 or len(cases) < 2:
            for case in cases:
                found = {}
                for label, records in measure_case(case, self, finished):
                    found[label] = records
                    if log:
                        log.append(piece(case, label), records)
                yield case, found
            return
        with ProcessPoolExecutor(min(self.jobs, len(cases)), mp_context=get_context("spawn")) as processes:
            known = frozenset(finished)
            running = {processes.submit(_whole_case, case, self, known): case for case in cases}
            for future in as_completed(running):
                case, found = running[future], future.result()
                for label, records in found.items():
                    if log:
                        log.append(piece(case, label), records)
                yield case, found


def piece(case: Case, label: str) -> str:
    """The name in the log of one organ of one case."""
    return f"{case.name} / {label}"


@lru_cache(maxsize=1)
def _model(choice: ModelChoice) -> PromptedModel:
    return PromptedModel.load(choice)


def measure_case(
    case: Case, run: ActiveRun, finished: Collection[str] = ()
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(label, records) of the organs of a case that are not finished."""
    torch.set_num_threads(run.threads)
    volume, labels = case.read()
    targets = [(name, mask) for name, mask in run.queries.targets(labels) if piece(case, name) not in finished]
    if not targets:
        return
    model = _model(run.model)
    query = model.embedder.open(volume)
    query.embed()
    for label, truth in targets:
        learner = Learner(query, model.embedder, model.target, steps=run.protocol.steps)
        yield label, measure_label(learner, label, truth, run.protocol)


def _whole_case(case: Case, run: ActiveRun, finished: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    return dict(measure_case(case, run, finished))


def active_result(run: ActiveRun, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a run. Raises ValueError when nothing could be measured."""
    if not records:
        raise ValueError(f"nothing to measure: no case of {run.queries.name} holds a wanted label")
    strategies = run.protocol.strategies
    found = {score: curves(records, score) for score in (OTHER, WHOLE)}
    last = found[OTHER][strategies[0]]
    settings = {**run.protocol.as_json(), "jobs": run.jobs, "threads": run.threads}
    return {
        "protocol": "active",
        "method": ", ".join(strategies),
        "encoder": run.model.encoder,
        "weights_sha256": run.weights_sha256,
        "settings": {**settings, "headline": f"{strategies[0]} / {max(last)} slices / {OTHER}"},
        "mean_dice": last[max(last)]["mean_dice"],
        "per_label": last[max(last)]["per_label"],
        "curves": found,
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
        "reliability": reliability(records),
        "per_case": [
            {"case": case.name, "records": [_short(record) for record in records if record["case"] == case.name]}
            for case in run.queries.cases
        ],
        "manifest": run_manifest(
            protocol="active",
            data=run.queries.manifest(),
            weights={run.model.encoder: run.weights_sha256},
            device=run.model.device,
            settings=settings,
        ),
    }


def _short(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("case", "reliability")}
