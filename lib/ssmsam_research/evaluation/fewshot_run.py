"""Running "complete" and "crosspatient" over a labelled set: cases in parallel, resumable, to one result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from ssmsam.progress import Progress, silent
from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.complete import CompleteProtocol
from ssmsam_research.evaluation.crosspatient import CrossPatientProtocol
from ssmsam_research.evaluation.episode import Episode
from ssmsam_research.evaluation.fewshot_summary import Measured, fewshot_result
from ssmsam_research.evaluation.methods import METHODS
from ssmsam_research.evaluation.prompted import ModelChoice, PromptedModel
from ssmsam_research.evaluation.results import RunLog
from ssmsam_research.evaluation.supports import SupportPool


@dataclass(frozen=True)
class FewShotRun:
    """What is run: methods on the queries, ``jobs`` cases at a time with ``threads`` each.

    ``pool`` is for "crosspatient" only. ``weights_sha256`` is None when no method needs an encoder. ``surfaces``
    adds distances in millimetres.
    """

    protocol: CompleteProtocol | CrossPatientProtocol
    queries: LabelledSet
    methods: tuple[str, ...]
    model: ModelChoice
    weights_sha256: str | None = None
    pool: SupportPool | None = None
    surfaces: bool = False
    jobs: int = 1
    threads: int = 1

    @property
    def key(self) -> str:
        """Changes with everything that changes the results of a method, so that a resumed run never mixes two."""
        sets = [self.queries] + ([self.pool.labelled_set] if self.pool else [])
        parts = {
            "protocol": [self.protocol.name, self.protocol.as_json(), self.surfaces],
            "sets": [one.manifest() for one in sets],
            "labels": [dict(one.label_names) for one in sets],
            "encoder": [self.model.encoder, self.weights_sha256],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def run(self, log: RunLog | None = None, *, progress: Progress = silent) -> dict[str, Any]:
        """Measure all cases and put the result together. What ``log`` has of a method is not measured again."""
        finished: dict[str, Measured] = log.read() if log else {}
        cases = self.queries.cases
        left = {case: [m for m in self.methods if piece(case, m) not in finished] for case in cases}
        done = sum(not methods for methods in left.values())
        progress("cases", done, len(cases))
        for case, measured in self._measure((case, methods) for case, methods in left.items() if methods):
            for method, content in measured.items():
                finished[piece(case, method)] = content
                if log:
                    log.append(piece(case, method), content)
            done += 1
            progress("cases", done, len(cases))
        measured_all = {m: {case.name: finished[piece(case, m)] for case in cases} for m in self.methods}
        return fewshot_result(self, measured_all)

    def episodes(self, case: Case, volume: Volume, labels: np.ndarray) -> Iterator[Episode]:
        """What the protocol makes of a case."""
        if isinstance(self.protocol, CompleteProtocol):
            return self.protocol.episodes(volume, labels, self.queries)
        return self.protocol.episodes(case, volume, labels, self.queries, self._pool)

    def not_run(self, case: Case, labels: np.ndarray) -> list[str]:
        """Labels of a case that the protocol cannot be run for."""
        if isinstance(self.protocol, CompleteProtocol):
            return []
        return self.protocol.without_support(case, labels, self.queries, self._pool)

    @property
    def _pool(self) -> SupportPool:
        if self.pool is None:
            raise ValueError(f"the protocol {self.protocol.name} needs a pool of supports")
        return self.pool

    def _measure(self, waiting: Iterable[tuple[Case, list[str]]]) -> Iterator[tuple[Case, dict[str, Measured]]]:
        pieces = list(waiting)
        if self.jobs == 1 or len(pieces) < 2:
            for case, methods in pieces:
                yield case, measure_case(case, methods, self)
            return
        with ProcessPoolExecutor(min(self.jobs, len(pieces)), mp_context=get_context("spawn")) as processes:
            running = {processes.submit(measure_case, case, methods, self): case for case, methods in pieces}
            for future in as_completed(running):
                yield running[future], future.result()


def piece(case: Case, method: str) -> str:
    """The name in the log of one method on one case: other settings of the method are another piece."""
    return f"{case.name} {method} {json.dumps(dict(METHODS[method].settings), sort_keys=True)}"


@lru_cache(maxsize=1)
def _model(choice: ModelChoice) -> PromptedModel:
    return PromptedModel.load(choice)


def measure_case(case: Case, methods: list[str], run: FewShotRun) -> dict[str, Measured]:
    """Method -> all its records on one case, and the labels that could not be run.

    The query is embedded before, outside the measured times; slices of supports count for the first method that
    needs them.
    """
    torch.set_num_threads(run.threads)
    volume, labels = case.read()
    measured: dict[str, Measured] = {
        name: {"records": [], "labels_not_run": run.not_run(case, labels)} for name in methods
    }
    model = _model(run.model) if needs_encoder(methods) else None
    if model is not None:
        query = model.embedder.open(volume)
        query.embed()
    built = {name: METHODS[name].build(model) for name in methods}
    for episode in run.episodes(case, volume, labels):
        for name, method in built.items():
            keep = episode.setting == run.protocol.headline
            measured[name]["records"].append(episode.measure(method, surfaces=run.surfaces, keep=keep))
    return measured


def needs_encoder(methods: Iterable[str]) -> bool:
    """Whether any of the methods looks at embeddings."""
    return any(METHODS[name].encoder for name in methods)
