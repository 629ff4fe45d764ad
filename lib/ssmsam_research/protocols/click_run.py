"""Running the protocol "clicks" over a labelled set: cases in parallel, resumable, to one result."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.model_choice import ModelChoice, PromptedTarget, loaded
from ssmsam_research.protocols.clicks import ClickProtocol, Record, read_slices, run_case, summarise_records
from ssmsam_research.run import Run


@dataclass(frozen=True)
class ClickRun(Run[Case]):
    """A simulated annotator with one model on a labelled set."""

    labelled_set: LabelledSet
    model: ModelChoice
    weights_sha256: str
    protocol: ClickProtocol = field(default_factory=ClickProtocol)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "set": self.labelled_set.manifest(),
            "labels": dict(self.labelled_set.label_names),
            "encoder": self.model.encoder,
            "weights": [self.weights_sha256, self.model.digests()],
            "published": self.model.published,
            "bfloat16": self.model.bfloat16,
            "protocol": self.protocol.as_json(),
        }

    def units(self) -> Sequence[Case]:
        return self.labelled_set.cases

    def measure(self, unit: Case, finished: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        if unit.name not in finished:
            yield unit.name, measure_case(unit, self)

    def result(self, pieces: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        measured = [{"case": case.name, **pieces[case.name]} for case in self.labelled_set.cases]
        tasks = summarise_records(
            [{"case": one["case"], **record} for one in measured for record in one["records"]], self.protocol
        )
        task, prompt = self.protocol.headline
        return self.record(
            protocol="clicks",
            method="sam_2d, sam_3d",
            settings={**self.protocol.as_json(), "headline": f"{task} / {prompt}"},
            data=self.labelled_set.manifest(),
            weights={self.model.encoder: self.weights_sha256} | self.model.digests(),
            device=self.model.device,
            **tasks[task][prompt],
            tasks=tasks,
            seconds=_mean_seconds(measured),
            per_case=measured,
        )


def measure_case(case: Case, run: ClickRun) -> dict[str, Any]:
    """All records of one case, with the time that embedding a slice and answering a prompt took."""
    torch.set_num_threads(run.threads)
    model = loaded(run.model)
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
