"""Options that several commands share, what becomes of them, and how a cohort is worked on with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch

from ssmsam.cli.command import FAILED, FINE, ProgressBar, Several, path_option
from ssmsam.cluster import (
    Cohort,
    EmbedStudy,
    Model,
    ScoreStudy,
    SegmentStudy,
    Study,
    Tls,
    open_engine,
    run_cohort,
    studies_of,
)
from ssmsam.cluster.engine import DaskEngine
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.models.registry import AUTO, ENCODER_VARIABLE, ENCODERS, choose_encoder, default_encoder
from ssmsam.paths import default_store
from ssmsam.report import record_run

METHODS = ("fewshot", "ssm_sam")
PLANES = ("axial", "coronal", "sagittal")
LISTED = 10
"""Failures that are printed one by one: a guess; all of them are in the table."""
AnyWork = EmbedStudy | SegmentStudy | ScoreStudy

encoder_option = click.option(
    "--encoder",
    type=click.Choice((*ENCODERS, AUTO)),
    default=default_encoder,
    help=f"{AUTO}: medsam_lite where its weights are installed, else small, which takes a twentieth of the time. "
    f"Default: {ENCODER_VARIABLE} where it is set, else {AUTO}.",
)
weights_option = path_option("--weights", metavar="DIR", help="Folder to look for weights in first.")
names_option = click.option(
    "--names", cls=Several, metavar="NAME=NUMBER...", help="What the numbers of a label map mean, as in liver=1."
)


def together(name: str, make: Callable[..., Any], *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options that reach the command as one argument ``name``, which ``make`` makes of their values."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        mine: list[str] = []

        @wraps(command)
        def call(**given: Any) -> Any:
            made = make(**{one: given.pop(one) for one in mine})
            return command(**given, **{name: made})

        for option in reversed(options):
            option(call)
            mine.append(call.__click_params__[-1].name)  # type: ignore[attr-defined]
        return call

    return decorate


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """On which machines a cohort is worked on, as for :func:`~ssmsam.cluster.open_engine`."""

    workers: int
    cluster: str | None
    tls: Tls | None


def _model(*, encoder: str, weights: Path | None, store: str, **more: Any) -> Model:
    """The model of the options, as workers load it."""
    return Model(
        encoder=choose_encoder(encoder, folder=weights),
        weights=None if weights is None else str(weights.absolute()),
        store=store if "://" in store else str(Path(store).expanduser().absolute()),
        **more,
    )


def _engine(
    *, workers: int, cluster: str | None, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> EngineOptions:
    given = [tls_ca, tls_cert, tls_key]
    if any(given) and not all(given):
        raise click.UsageError("--tls-ca, --tls-cert and --tls-key belong together.")
    tls = Tls(ca=str(tls_ca), cert=str(tls_cert), key=str(tls_key)) if all(given) else None
    return EngineOptions(workers=workers, cluster=cluster, tls=tls)


model_options = together(
    "model",
    _model,
    encoder_option,
    weights_option,
    click.option("--allow-unverified", is_flag=True, help="Accept weights of your own."),
    click.option("--store", metavar="DIR", default=lambda: str(default_store()), help="Where embeddings are kept."),
    click.option(
        "--store-gb", type=float, default=20.0, show_default=True, metavar="GB", help="Size limit of the store."
    ),
    click.option("--device", metavar="NAME", help="As torch names it. Default: a GPU, else cpu."),
    click.option("--threads", type=int, metavar="N", help="Default: what OMP_NUM_THREADS says, else all cores."),
)
"""Encoder and weights, device and threads, and the embedding store."""

engine_options = together(
    "engine",
    _engine,
    click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="Processes."),
    click.option("--cluster", metavar="tcp://HOST:PORT", help="A Dask scheduler; or slurm, or kubernetes."),
    path_option("--tls-ca", metavar="PEM", help="The authority of a scheduler at tls://."),
    path_option("--tls-cert", metavar="PEM", help="This machine's certificate."),
    path_option("--tls-key", metavar="PEM", help="Its private key."),
)
"""Workers here, or a cluster."""


def on_cuda(device: str | None) -> str:
    """The device that a model is on whose options leave it open."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


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
        if isinstance(opened, DaskEngine):
            print(f"{opened.workers} workers; what each of them does: {opened.page}")
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
