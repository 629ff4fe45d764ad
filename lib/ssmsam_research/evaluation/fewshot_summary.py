"""From the records of few-shot methods to one result and its curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmsam.report import mean_over_labels
from ssmsam_research.evaluation.clicks import Record, agreement, label_summaries
from ssmsam_research.evaluation.figures import draw_curves, draw_seconds
from ssmsam_research.evaluation.methods import METHODS

if TYPE_CHECKING:
    from ssmsam_research.evaluation.fewshot_run import FewShotRun

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
