"""Running the protocol "clicks" over a labelled set: cases in parallel, resumable, to one result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from ssmsam.progress import Progress, silent
from ssmsam.report import run_manifest
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.clicks import ClickProtocol, Record, read_slices, run_case, summarise_records
from ssmsam_research.evaluation.prompted import ModelChoice, PromptedModel, PromptedTarget
from ssmsam_research.evaluation.results import RunLog


@dataclass(frozen=True)
class ClickRun:
    """What is run: a model on a labelled set, ``jobs`` cases at a time with ``threads`` each."""

    labelled_set: LabelledSet
    model: ModelChoice
    weights_sha256: str
    protocol: ClickProtocol = field(default_factory=ClickProtocol)
    jobs: int = 1
    threads: int = 1

    @property
    def key(self) -> str:
        """Changes with everything that changes the results, so that a resumed run never mixes two."""
        parts = {
            "set": self.labelled_set.manifest(),
            "labels": dict(self.labelled_set.label_names),
            "encoder": self.model.encoder,
            "weights": [self.weights_sha256, self.model.digests()],
            "published": self.model.published,
            "bfloat16": self.model.bfloat16,
            "protocol": self.protocol.as_json(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def run(self, log: RunLog | None = None, *, progress: Progress = silent) -> dict[str, Any]:
        """Measure all cases and put the result together. Cases that ``log`` has are not measured again."""
        finished: dict[str, dict[str, Any]] = log.read() if log else {}
        cases = self.labelled_set.cases
        progress("cases", len(finished), len(cases))
        for name, measured in self._measure(case for case in cases if case.name not in finished):
            finished[name] = measured
            if log:
                log.append(name, measured)
            progress("cases", len(finished), len(cases))
        return self._result([{"case": case.name, **finished[case.name]} for case in cases])

    def _measure(self, cases: Iterable[Case]) -> Iterator[tuple[str, dict[str, Any]]]:
        waiting = list(cases)
        if self.jobs == 1 or len(waiting) < 2:
            for case in waiting:
                yield case.name, measure_case(case, self)
            return
        with ProcessPoolExecutor(min(self.jobs, len(waiting)), mp_context=get_context("spawn")) as pool:
            running = {pool.submit(measure_case, case, self): case.name for case in waiting}
            for future in as_completed(running):
                yield running[future], future.result()

    def _result(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        records = [{"case": one["case"], **record} for one in measured for record in one["records"]]
        tasks = summarise_records(records, self.protocol)
        task, prompt = self.protocol.headline
        settings = {"headline": f"{task} / {prompt}", "jobs": self.jobs, "threads": self.threads}
        data = self.labelled_set.manifest()
        return {
            "protocol": "clicks",
            "method": "sam_2d, sam_3d",
            "encoder": self.model.encoder,
            "weights_sha256": self.weights_sha256,
            "settings": {**self.protocol.as_json(), **settings},
            **tasks[task][prompt],
            "tasks": tasks,
            "seconds": _mean_seconds(measured),
            "per_case": measured,
            "manifest": run_manifest(
                protocol="clicks",
                data=data,
                weights=self.model.digests(),
                device=self.model.device,
                settings=settings,
            ),
        }


@lru_cache(maxsize=1)
def _model(choice: ModelChoice) -> PromptedModel:
    """One model for each process: loading it again for each case would cost more than small cases do."""
    return PromptedModel.load(choice)


def measure_case(case: Case, run: ClickRun) -> dict[str, Any]:
    """All records of one case, with the time that embedding a slice and answering a prompt took."""
    torch.set_num_threads(run.threads)
    model = _model(run.model)
    volume, labels = case.read()
    embeddings = model.embedder.open(volume)
    indices = read_slices(labels, run.labelled_set, run.protocol)
    started = time.perf_counter()
    embeddings.embed(indices)
    embed_s = (time.perf_counter() - started) / max(len(indices), 1)
    started = time.perf_counter()
    records = run_case(
        volume, labels, run.labelled_set, lambda: PromptedTarget(embeddings, model.decoder), run.protocol
    )
    return {
        "records": [_rounded(record) for record in records],
        "seconds": {"embed_slice": round(embed_s, 4), "annotate_case": round(time.perf_counter() - started, 2)},
    }


def _rounded(record: Record) -> Record:
    return {**record, "dice": {prompt: round(score, 3) for prompt, score in record["dice"].items()}}


def _mean_seconds(measured: list[dict[str, Any]]) -> dict[str, float]:
    keys = measured[0]["seconds"]
    return {key: round(float(np.mean([one["seconds"][key] for one in measured])), 4) for key in keys}
