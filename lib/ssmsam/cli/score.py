"""``ssmsam score``: how well a task does on every study of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from ssmsam.api import task_card
from ssmsam.cli.command import Program, json_option, path_option
from ssmsam.cli.options import EngineOptions, engine_options, listed, model_options, recorded, worked_on
from ssmsam.cluster import Model, ScoreStudy
from ssmsam.cluster.work import task_file


@click.command(cls=Program, stopped="what was finished is kept, start again to go on")
@click.argument("studies")
@path_option("--task", "task", required=True, metavar="FILE", help="What `ssmsam adapt` wrote.")
@path_option("--truth", metavar="DIR", help="Label maps with the studies' names and the task's numbers.")
@path_option("--out", required=True, metavar="DIR", help="What became of each study, and a table.")
@engine_options
@model_options
@json_option
def command(
    *, studies: str, task: Path, truth: Path | None, out: Path, engine: EngineOptions, model: Model, record: Path | None
) -> int:
    """Say of every study how good the masks of a task would be, worst first: there annotation helps most.

    STUDIES is as for `ssmsam embed`. No mask is written. With --truth the table has the real Dice beside the expected
    one. What is finished in --out is not done again.
    """
    found, known = listed(studies), None if truth is None else str(truth.absolute())
    work = ScoreStudy(model=model, **task_file(task), method=task_card(task)["method"], truth=known)
    cohort = worked_on(found, work, out=out, engine=engine)
    scored = [one for one in cohort.outcomes if one.state == "done"]
    mean = {one.study: np.mean([told["dice_estimate"] for told in one.details["labels"].values()]) for one in scored}
    for outcome in sorted(scored, key=lambda one: float(mean[one.study])):
        labels = outcome.details["labels"]
        print(f"{outcome.study}: " + "; ".join(f"{label} {_figures(one)}" for label, one in labels.items()))
    result = {
        "per_case": [{"case": one.study, **one.details["labels"]} for one in scored],
        "failed": {one.study: one.reason for one in cohort.failed},
    }
    data = {"set": Path(studies).name, "cases": [one.study for one in cohort.outcomes]}
    return recorded(cohort, work, record, result, data=data, weights={"task": work.task_sha256})


def _figures(one: dict[str, Any]) -> str:
    said = f"expected Dice {100 * one['dice_estimate']:.0f} %"
    return said + (f", Dice {100 * one['dice']:.1f} %" if "dice" in one else "")
