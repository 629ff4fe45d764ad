"""From the records of few-shot methods to one result and its curves."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmsam.report import mean_over_labels
from ssmsam.volume.volume import Volume
from ssmsam_research.figures.curves import draw_curves, draw_seconds
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.methods.registry import METHODS
from ssmsam_research.model_choice import ModelChoice, loaded
from ssmsam_research.protocols.clicks import Record, agreement, label_summaries
from ssmsam_research.protocols.complete import CompleteProtocol
from ssmsam_research.protocols.crosspatient import CrossPatientProtocol, SupportPool
from ssmsam_research.protocols.episode import Episode
from ssmsam_research.run import Run

Measured = dict[str, Any]
"""Of one method on one case: its ``records``, and ``labels_not_run``."""


def fewshot_result(run: FewShotRun, measured: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    """The result of a run from method -> case -> what was measured. The first method stands at the top.

    Raises ValueError when nothing could be measured.
    """
    if not any(one["records"] for cases in measured.values() for one in cases.values()):
        raise ValueError(
            f"nothing to measure: no label of {run.queries.name} is held by enough other cases; "
            "lower --shots, or give more cases with --support-data"
        )
    methods = {
        name: summarise_settings([{"case": case, **record} for case, one in cases.items() for record in one["records"]])
        for name, cases in measured.items()
    }
    first = methods[run.methods[0]][run.protocol.headline]
    data = {"queries": run.queries.manifest()}
    if run.pool:
        data["supports"] = run.pool.labelled_set.manifest()
    return run.record(
        protocol=run.protocol.name,
        method=", ".join(run.methods),
        settings={
            **run.protocol.as_json(),
            "headline": f"{run.methods[0]} / {run.protocol.headline}",
            "methods": {name: dict(METHODS[name].settings) for name in run.methods},
        },
        data=data,
        weights={run.model.encoder: run.weights_sha256} if run.weights_sha256 else {},
        device=run.model.device,
        **{name: first[name] for name in ("mean_dice", "per_label", "mean_iou", "iou_per_label")},
        methods=methods,
        labels_not_run=_not_run(measured),
        seconds={name: _mean_seconds(cases) for name, cases in measured.items()},
        per_case=[
            {"case": case.name, "methods": {name: measured[name][case.name]["records"] for name in run.methods}}
            for case in run.queries.cases
        ],
    )


def summarise_settings(records: Sequence[Record]) -> dict[str, Any]:
    """Setting -> means over labels of means over cases of means over supports, for every score and distance.

    The first score also stands at the setting itself. ``nothing_left`` counts the records where no voxel of the
    organ was left to be found: there an empty mask scores 100 and any other 0.
    """
    settings: dict[str, Any] = {}
    for setting in dict.fromkeys(record["setting"] for record in records):
        of_setting = [record for record in records if record["setting"] == setting]
        scores = {name: agreement(of_setting, name) for name in of_setting[0]["dice"]}
        settings[setting] = {
            **next(iter(scores.values())),
            "k": of_setting[0]["k"],
            "scores": scores,
            "nothing_left": sum(record["nothing_left"] for record in of_setting),
            "seconds": round(float(np.mean([record["seconds"] for record in of_setting])), 3),
        }
        if "surface" in of_setting[0]:
            settings[setting]["surface"] = {name: _distance(of_setting, name) for name in of_setting[0]["surface"]}
    return settings


def _distance(records: Sequence[Record], name: str) -> dict[str, Any]:
    per_label = label_summaries(records, name, measure="surface")
    return {
        "mean": round(mean_over_labels(per_label), 3),
        "per_label": {label: summary.as_json() for label, summary in per_label.items()},
    }


def _not_run(measured: Mapping[str, Mapping[str, Measured]]) -> dict[str, list[str]]:
    """Case -> labels that no method was run for, because too few supports hold them."""
    cases = next(iter(measured.values()))
    return {case: one["labels_not_run"] for case, one in cases.items() if one["labels_not_run"]}


def _mean_seconds(cases: Mapping[str, Measured]) -> float:
    return round(float(np.mean([record["seconds"] for one in cases.values() for record in one["records"]])), 3)


def fewshot_curves(result: dict[str, Any], score: str | None = None) -> dict[str, dict[str, dict[int, float]]]:
    """Family of settings -> method -> {annotated slices: mean Dice}, for families with several numbers of slices."""
    families: dict[str, dict[str, dict[int, float]]] = {}
    for method, settings in result["methods"].items():
        for setting, found in settings.items():
            family = setting.split(",")[0]
            mean = (found["scores"][score] if score else found)["mean_dice"]
            families.setdefault(family, {}).setdefault(method, {})[found["k"]] = mean
    return {family: lines for family, lines in families.items() if any(len(line) > 1 for line in lines.values())}


def seconds_curves(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Name -> (seconds for a mask, mean Dice) of the headline's setting, by rising seconds.

    Methods that differ in nothing but their number of steps share one line, named after the first word of their names.
    """
    setting = result["settings"]["headline"].split(" / ")[1]
    families: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for method, found in result["methods"].items():
        others = {key: value for key, value in result["settings"]["methods"][method].items() if key != "steps"}
        family = families.setdefault((method.split("_")[0], json.dumps(others, sort_keys=True)), {})
        family[method] = (found[setting]["seconds"], found[setting]["mean_dice"])
    return {
        next(iter(family)) if len(family) == 1 else word: sorted(family.values())
        for (word, _), family in families.items()
    }


def draw_fewshot(folder: Path, result: dict[str, Any], name: str) -> list[Path]:
    """Dice against annotated slices for each family of settings and each score, and against seconds. The files."""
    scores = next(iter(next(iter(result["methods"].values())).values()))["scores"]
    drawn = []
    for score in scores:
        for family, lines in fewshot_curves(result, score).items():
            path = folder / f"{result['protocol']}_{family}_{score}.png".replace(" ", "_")
            drawn.append(draw_curves(path, lines, title=f"{name}: {score}, {family}", x_label="annotated slices"))
    title = f"{name}: {result['settings']['headline'].split(' / ')[1]}"
    return [*drawn, draw_seconds(folder / f"{result['protocol']}_seconds.png", seconds_curves(result), title=title)]


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
