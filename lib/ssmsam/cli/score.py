"""``ssmsam score``: how well a task does on every study of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from ssmsam.api import task_card
from ssmsam.cli.command import Program, json_option, path_option
from ssmsam.cli.engine import engine_options, listed, model_of, status_of, worked_on
from ssmsam.cli.options import model_options, on_cuda, store_gb_option
from ssmsam.cluster import ScoreStudy
from ssmsam.cluster.work import task_file
from ssmsam.report import record_run


@click.command(cls=Program, stopped="what was finished is kept, start again to go on")
@click.argument("studies")
@path_option("--task", "task", required=True, metavar="FILE", help="What `ssmsam adapt` wrote.")
@path_option("--truth", metavar="DIR", help="Label maps with the studies' names and the task's numbers.")
@path_option("--out", required=True, metavar="DIR", help="What became of each study, and a table.")
@engine_options
@model_options
@store_gb_option
@json_option
def command(
    *,
    studies: str,
    task: Path,
    truth: Path | None,
    out: Path,
    workers: int,
    cluster: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    record: Path | None,
    **options: Any,
) -> int:
    """Say of every study how good the masks of a task would be, worst first: there annotation helps most.

    STUDIES is as for `ssmsam embed`. No mask is written. With --truth the table has the real Dice beside the expected
    one. What is finished in --out is not done again.
    """
    found = listed(studies)
    model = model_of(**options)
    work = ScoreStudy(
        model=model, **task_file(task), method=task_card(task)["method"],
        truth=None if truth is None else str(truth.absolute()),
    )  # fmt: skip
    cohort = worked_on(
        found, work, out=out, model=model, workers=workers, cluster=cluster,
        tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key,
    )  # fmt: skip
    scored = [one for one in cohort.outcomes if one.state == "done"]
    for outcome in sorted(scored, key=lambda one: _expected(one.details["labels"])):
        labels = outcome.details["labels"]
        print(f"{outcome.study}: " + "; ".join(f"{label} {_figures(one)}" for label, one in labels.items()))
    record_run(
        record,
        {
            "per_case": [{"case": one.study, **one.details["labels"]} for one in scored],
            "failed": {one.study: one.reason for one in cohort.failed},
        },
        protocol="score",
        data={"set": Path(studies).name, "cases": [one.study for one in cohort.outcomes]},
        weights={"task": work.task_sha256},
        device=on_cuda(model.device),
    )
    return status_of(cohort)


def _expected(labels: dict[str, Any]) -> float:
    return float(np.mean([one["dice_estimate"] for one in labels.values()]))


def _figures(one: dict[str, Any]) -> str:
    said = f"expected Dice {100 * one['dice_estimate']:.0f} %"
    return said + (f", Dice {100 * one['dice']:.1f} %" if "dice" in one else "")
