"""The options that say on which machines a cohort is worked on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ssmsam.cli.command import FAILED, FINE, ProgressBar, path_option
from ssmsam.cluster import Cohort, Study, Tls, open_engine, run_cohort, studies_of
from ssmsam.cluster.work import Model, Work
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.models.registry import choose_encoder

LISTED = 10
"""Failures that are printed one by one: a guess; all of them are in the table."""


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Workers here, or a cluster."""
    for option in (
        path_option("--tls-key", metavar="PEM", help="Its private key."),
        path_option("--tls-cert", metavar="PEM", help="This machine's certificate."),
        path_option("--tls-ca", metavar="PEM", help="The authority of a scheduler at tls://."),
        click.option("--cluster", metavar="tcp://HOST:PORT", help="A Dask scheduler; or slurm, or kubernetes."),
        click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="Processes."),
    ):
        command = option(command)
    return command


def listed(studies: str) -> list[Study]:
    """The studies of an argument. Raises ValueError where there is none."""
    try:
        return studies_of(studies)
    except (StoreUnavailable, StoreRefused) as error:
        raise ValueError(str(error)) from None


def model_of(
    *,
    encoder: str,
    store: Path | str,
    store_gb: float,
    weights: Path | None,
    allow_unverified: bool,
    device: str | None,
    threads: int | None,
) -> Model:
    """The model of the options, as workers load it."""
    return Model(
        encoder=choose_encoder(encoder, folder=weights),
        store=str(store) if "://" in str(store) else str(Path(store).expanduser().absolute()),
        store_gb=store_gb,
        weights=None if weights is None else str(weights.absolute()),
        allow_unverified=allow_unverified,
        device=device,
        threads=threads,
    )


def worked_on(
    studies: list[Study],
    work: Work,
    *,
    out: Path | None,
    model: Model,
    workers: int,
    cluster: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Cohort:
    """Run a cohort where the options say, with a bar; what came of it is printed."""
    gpu = bool(cluster) and (model.device or "").startswith("cuda")
    with (
        open_engine(
            workers=workers, cluster=cluster, threads=model.threads, gpu=gpu, tls=_tls(tls_ca, tls_cert, tls_key)
        ) as engine,
        ProgressBar() as progress,
    ):
        if page := getattr(engine, "page", ""):
            print(f"{engine.workers} workers; what each of them does: {page}")
        cohort = run_cohort(studies, work, engine=engine, out=out, progress=progress)
    titles = {study.name: study.title for study in studies}
    for outcome in cohort.failed[:LISTED]:
        click.echo(f"{titles[outcome.study]}: left out, {outcome.reason}", err=True)
    table = f"; the table: {out / 'studies.csv'}" if out else ""
    print(f"{len(cohort.outcomes) - len(cohort.failed)} of {len(cohort.outcomes)} studies done{table}")
    return cohort


def status_of(cohort: Cohort) -> int:
    return FAILED if cohort.failed else FINE


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        raise click.UsageError("--tls-ca, --tls-cert and --tls-key belong together.")
    return Tls(ca=str(ca), cert=str(cert), key=str(key))
