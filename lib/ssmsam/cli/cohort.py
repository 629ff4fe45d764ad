"""What ``ssmsam embed``, ``score`` and ``segment --studies`` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssmsam.cli.command import FAILED, FINE, ProgressBar
from ssmsam.cli.options import EngineOptions, on_cuda
from ssmsam.cluster import Cohort, EmbedStudy, ScoreStudy, SegmentStudy, Study, open_engine, run_cohort, studies_of
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.report import record_run

LISTED = 10
"""Failures that are printed one by one: a guess; all of them are in the table."""


AnyWork = EmbedStudy | SegmentStudy | ScoreStudy


def listed(studies: str) -> list[Study]:
    """The studies of an argument. Raises ValueError where there is none."""
    try:
        return studies_of(studies)
    except (StoreUnavailable, StoreRefused) as error:
        raise ValueError(str(error)) from None


def worked_on(studies: list[Study], work: AnyWork, *, out: Path | None, engine: EngineOptions) -> Cohort:
    """Run a cohort where the options say, with a bar; what came of it is printed."""
    gpu = bool(engine.cluster) and (work.model.device or "").startswith("cuda")
    with open_engine(**vars(engine), threads=work.model.threads, gpu=gpu) as opened, ProgressBar() as progress:
        if page := getattr(opened, "page", ""):
            print(f"{opened.workers} workers; what each of them does: {page}")
        cohort = run_cohort(studies, work, engine=opened, out=out, progress=progress)
    titles = {study.name: study.title for study in studies}
    for outcome in cohort.failed[:LISTED]:
        click.echo(f"{titles[outcome.study]}: left out, {outcome.reason}", err=True)
    table = f"; the table: {out / 'studies.csv'}" if out else ""
    print(f"{cohort.count} studies done{table}")
    return cohort


def recorded(cohort: Cohort, work: AnyWork, path: Path | None, result: dict[str, Any], **more: Any) -> int:
    """Write what was done for ``--json``; the command's status."""
    record_run(path, result, protocol=work.name, device=on_cuda(work.model.device), **more)
    return FAILED if cohort.failed else FINE
