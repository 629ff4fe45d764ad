"""Protocol "complete", as a user meets it: slices are submitted to a running server, and its answers are judged.

k slices of each organ are annotated, with its first and its last one, all organs of a volume in one submission. Nothing
says that nothing lies beyond, and no slice is said to be empty. One volume at a time: what was annotated is forgotten
before the next one. Judged are the first proposal, and what the server answers once its adaptation has ended; beside
them plain interpolation of the same slices. Embeddings are there before, as once a volume was open for a while.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import requests
from requests_toolbelt.multipart.decoder import MultipartDecoder

from ssmsam.cli.live_server import live_server
from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.progress import Progress, silent
from ssmsam.reading import read_volume
from ssmsam.report import run_manifest
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.methods.interpolation import ShapeInterpolation
from ssmsam_research.metrics import dice
from ssmsam_research.model_choice import ModelChoice, PromptedModel
from ssmsam_research.protocols.clicks import Record
from ssmsam_research.protocols.complete import OTHER
from ssmsam_research.protocols.fewshot_run import summarise_settings
from ssmsam_research.protocols.fewshot_task import Support, Task, with_ends

WHOLE = "whole volume"
INTERPOLATION, FIRST, LATER = "interpolation", "first proposal", "after adaptation"
TIMEOUT = 600.0
"""Seconds after which a server is taken to be stuck: a guess, beyond the longest adaptation."""


@dataclass(frozen=True)
class OverRest:
    """What is run: ``slices`` of each organ are submitted, ``method`` is asked."""

    queries: LabelledSet
    model: ModelChoice
    slices: int = 5
    method: str = "fewshot"
    threads: int = 1
    name: ClassVar[str] = "complete over REST"

    def run(self, app: Path, *, progress: Progress = silent) -> dict[str, Any]:
        """Start a server on the volumes, and measure every one. Raises ServerFailed."""
        model = PromptedModel.load(self.model)
        records: list[Record] = []
        with tempfile.TemporaryDirectory(prefix="ssmsam-rest-") as folder:
            studies, store = Path(folder) / "studies", self.model.store or Path(folder) / "store"
            studies.mkdir()
            embedder = Embedder(encoder=model.embedder.encoder, store=EmbeddingStore(store))
            for case in self.queries.cases:
                (studies / case.image.name).symlink_to(case.image.resolve())
                embedder.open(read_volume(case.image)).embed()
            with live_server(app=app, studies=studies, conf=self._conf(Path(folder), store)) as server:
                for number, case in enumerate(self.queries.cases):
                    progress("cases", number, len(self.queries.cases))
                    records += measured(server.url, case, self, Path(folder))
        progress("cases", len(self.queries.cases), len(self.queries.cases))
        return self._result(records, model.weights_sha256)

    def _conf(self, folder: Path, store: Path) -> dict[str, str]:
        conf = {
            "encoder": self.model.encoder, "device": self.model.device, "threads": str(self.threads),
            "store": str(store), "heads": str(folder / "heads"), "precompute": "false",
        }  # fmt: skip
        return conf if self.model.weights is None else {**conf, "weights": str(self.model.weights)}

    def _result(self, records: list[Record], weights_sha256: str) -> dict[str, Any]:
        settings = {"slices": self.slices, "placement": "ends given", "method": self.method, "threads": self.threads}
        methods = {name: summarise_settings(of(records, name)) for name in (FIRST, LATER, INTERPOLATION)}
        headline = next(iter(methods[FIRST].values()))
        seconds = sorted({(one["case"], one["answer_s"]) for one in of(records, FIRST)})
        return {
            "protocol": self.name,
            "method": self.method,
            "encoder": self.model.encoder,
            "weights_sha256": weights_sha256,
            "settings": {**settings, "headline": FIRST},
            **{name: headline[name] for name in ("mean_dice", "per_label", "mean_iou", "iou_per_label")},
            "methods": methods,
            "worst_against_interpolation": worst_against_interpolation(records),
            "seconds": {
                "first_proposal": {case: found for case, found in seconds},
                "median": round(float(np.median([found for _, found in seconds])), 2),
                "load_1min": round(os.getloadavg()[0], 2),
            },
            "per_case": [
                {"case": case.name, "records": [one for one in records if one["case"] == case.name]}
                for case in self.queries.cases
            ],
            "manifest": run_manifest(
                protocol=self.name,
                data={"queries": self.queries.manifest()},
                weights={self.model.encoder: weights_sha256},
                device=self.model.device,
                settings=settings,
            ),
        }


def of(records: list[Record], method: str) -> list[Record]:
    return [one for one in records if one["method"] == method]


def worst_against_interpolation(records: list[Record]) -> dict[str, dict[str, float]]:
    """Label -> the mean gain over interpolation in points, and the smallest of any case, by the first proposal."""
    plain = {(one["case"], one["label"]): one["dice"][OTHER] for one in of(records, INTERPOLATION)}
    gains: dict[str, list[float]] = {}
    for one in of(records, FIRST):
        gains.setdefault(one["label"], []).append(one["dice"][OTHER] - plain[one["case"], one["label"]])
    return {
        label: {"mean": round(float(np.mean(found)), 2), "smallest": round(min(found), 2)}
        for label, found in sorted(gains.items())
    }


def measured(url: str, case: Case, run: OverRest, folder: Path) -> list[Record]:
    """Submit slices of a case, ask twice, and score what comes; then let the server forget them."""
    volume, labels = case.read()
    truths = dict(run.queries.targets(labels))
    slices = {label: sorted(set(with_ends(truth, run.slices))) for label, truth in truths.items()}
    submit(url, case.name, volume, truths, slices, folder)
    first, told, seconds = asked(url, case.name, run.method, volume, folder)
    job, ended = told.get("job"), {}
    while job and (ended := requests.get(f"{url}/jobs/{job}", timeout=TIMEOUT).json())["state"] in (
        "queued", "running",
    ):  # fmt: skip
        time.sleep(0.2)
    later, told_later, seconds_later = asked(url, case.name, run.method, volume, folder)
    requests.delete(f"{url}/datastore/annotations", params={"image": case.name}, timeout=TIMEOUT).raise_for_status()
    records = []
    for label, truth in truths.items():
        plain = interpolated(volume, truth, slices[label])
        found = {
            FIRST: (first == told["label_names"].get(label, -1), seconds),
            LATER: (later == told_later["label_names"].get(label, -1), seconds_later),
            INTERPOLATION: (plain, 0.0),
        }
        other = np.ones(len(truth), dtype=bool)
        other[slices[label]] = False
        records += [
            {
                "case": case.name,
                "method": method,
                "label": label,
                "setting": f"ends given, {run.slices} slices",
                "k": run.slices,
                "annotated": slices[label],
                "dice": {OTHER: round(dice(mask[other], truth[other]), 3), WHOLE: round(dice(mask, truth), 3)},
                "nothing_left": not truth[other].any(),
                "seconds": round(spent, 3),
                "answer_s": round(spent, 3),
                "asked_slices": told.get("asked_slices", {}).get(label, []),
                "judgement": ended.get("detail", ""),
            }
            for method, (mask, spent) in found.items()
        ]
    return records


def submit(
    url: str,
    image: str,
    volume: Volume,
    truths: Mapping[str, np.ndarray],
    slices: Mapping[str, list[int]],
    folder: Path,
) -> None:
    """Send the slices of all organs in one label map. Raises HTTPError."""
    drawn = np.zeros(volume.shape, dtype=np.uint8)
    for value, (label, truth) in enumerate(truths.items(), 1):
        for index in slices[label]:
            drawn[index][truth[index]] = value
    file = folder / f"{image}-slices.nii.gz"
    write_volume(volume.with_array(drawn), file)
    said = {
        "label_info": [{"name": label, "idx": value} for value, label in enumerate(truths, 1)],
        "client_id": "benchmark",
        "partial": {"slices": {label: {"annotated": found} for label, found in slices.items()}},
    }
    with file.open("rb") as opened:
        requests.put(
            f"{url}/datastore/label",
            params={"image": image, "tag": "partial"},
            files={"label": (file.name, opened)},
            data={"params": json.dumps(said)},
            timeout=TIMEOUT,
        ).raise_for_status()


def asked(url: str, image: str, method: str, volume: Volume, folder: Path) -> tuple[np.ndarray, dict[str, Any], float]:
    """The mask (slices, rows, columns) that the server answers, its details, and the seconds until they were here."""
    started = time.perf_counter()
    answer = requests.post(
        f"{url}/infer/{method}",
        params={"image": image},
        files={"params": (None, json.dumps({"client_id": "benchmark", "result_extension": ".nrrd"}))},
        timeout=TIMEOUT,
    )
    answer.raise_for_status()
    seconds = time.perf_counter() - started
    parts = {
        part.headers[b"Content-Disposition"].split(b'name="')[1].split(b'"')[0].decode(): part.content
        for part in MultipartDecoder.from_response(answer).parts
    }
    file = folder / "answer.nrrd"
    file.write_bytes(parts["image"])
    mask = read_volume(file)
    if not mask.grid.matches(volume.grid):
        raise ValueError(f"the server answered a mask of {image} on another grid")
    return np.rint(mask.array).astype(np.uint8), json.loads(parts["params"]), seconds


def interpolated(volume: Volume, truth: np.ndarray, slices: list[int]) -> np.ndarray:
    """Shape interpolation of the same slices."""
    task = Task((Support.from_labels(volume, truth, slices),), volume)
    return task.finished(ShapeInterpolation().segment(task))
