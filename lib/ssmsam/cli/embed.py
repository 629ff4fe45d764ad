"""``ssmsam embed``: volumes -> the embedding store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ssmsam.cli.command import Program, json_option, path_option
from ssmsam.cli.engine import engine_options, listed, model_of, status_of, worked_on
from ssmsam.cli.options import model_options, on_cuda, store_gb_option
from ssmsam.cluster import EmbedStudy
from ssmsam.models.registry import load_encoder
from ssmsam.report import record_run


@click.command(cls=Program, stopped="what was finished is kept, start again to go on")
@click.argument("studies")
@path_option("--out", metavar="DIR", help="Keep what became of each study there, and a table.")
@engine_options
@model_options
@click.option("--download", is_flag=True, help="Fetch missing weights.")
@store_gb_option
@json_option
def command(
    *,
    studies: str,
    out: Path | None,
    workers: int,
    cluster: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    download: bool,
    record: Path | None,
    **options: Any,
) -> int:
    """Fill the embedding store for all volumes of a folder, so that the first click on any slice is a fast one.

    STUDIES is a folder as the server's (files, or folders of DICOM), a list of such paths (.txt), or the address of a
    DICOMweb store. What is already in the store is not computed again, so this may be stopped (Ctrl-C) and started
    again at any time. With --workers or --cluster several processes share the work; the store may be a URL then
    (s3://bucket/prefix).
    """
    found = listed(studies)
    model = model_of(**options)
    weights = load_encoder(
        model.encoder, folder=options["weights"], download=download, allow_unverified=model.allow_unverified
    ).weights_sha256
    print(f"{len(found)} volumes, encoder {model.encoder} on {on_cuda(model.device)}, store {model.store}")
    cohort = worked_on(
        found, EmbedStudy(model=model), out=out, model=model, workers=workers, cluster=cluster,
        tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key,
    )  # fmt: skip
    titles = {study.name: study.title for study in found}
    for outcome in cohort.outcomes:
        if outcome.state == "done":
            slices, encoded = outcome.details["slices"], outcome.details["encoded"]
            print(f"{titles[outcome.study]}: {slices} slices, {encoded} of them new, {outcome.seconds:.1f} s")
    done = [
        {
            "name": titles[one.study],
            "seconds": one.seconds,
            **(one.details if one.state == "done" else {"error": one.reason}),
        }
        for one in cohort.outcomes
    ]
    record_run(
        record,
        {"encoder": model.encoder, "studies": done},
        protocol="embed",
        data={"set": Path(studies).name, "cases": list(titles.values())},
        weights={model.encoder: weights},
        device=on_cuda(model.device),
    )
    return status_of(cohort)
