"""Running "complete" and "crosspatient" over a labelled set: cases in parallel, resumable, to one result."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssmsam.volume.volume import Volume
from ssmsam_research.evaluation.cases import Case, LabelledSet
from ssmsam_research.evaluation.complete import CompleteProtocol
from ssmsam_research.evaluation.crosspatient import CrossPatientProtocol
from ssmsam_research.evaluation.episode import Episode
from ssmsam_research.evaluation.fewshot_summary import Measured, fewshot_result
from ssmsam_research.evaluation.methods import METHODS
from ssmsam_research.evaluation.prompted import ModelChoice, loaded
from ssmsam_research.evaluation.run import Run
from ssmsam_research.evaluation.supports import SupportPool


@dataclass(frozen=True)
class FewShotRun(Run[Case]):
    """Methods on the queries of "complete" or "crosspatient".

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

    @property
    def identity(self) -> dict[str, Any]:
        sets = [self.queries] + ([self.pool.labelled_set] if self.pool else [])
        return {
            "protocol": [self.protocol.name, self.protocol.as_json(), self.surfaces],
            "sets": [one.manifest() for one in sets],
            "labels": [dict(one.label_names) for one in sets],
            "encoder": [self.model.encoder, self.weights_sha256],
        }

    def units(self) -> Sequence[Case]:
        return self.queries.cases

    def measure(self, unit: Case, finished: Collection[str]) -> Iterator[tuple[str, Measured]]:
        wanted = [method for method in self.methods if piece(unit, method) not in finished]
        for method, content in (measure_case(unit, wanted, self) if wanted else {}).items():
            yield piece(unit, method), content

    def result(self, pieces: Mapping[str, Measured]) -> dict[str, Any]:
        cases = self.queries.cases
        return fewshot_result(self, {m: {case.name: pieces[piece(case, m)] for case in cases} for m in self.methods})

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


def piece(case: Case, method: str) -> str:
    """The name in the log of one method on one case: other settings of the method are another piece."""
    return f"{case.name} {method} {json.dumps(dict(METHODS[method].settings), sort_keys=True)}"


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
    model = loaded(run.model) if needs_encoder(methods) else None
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
