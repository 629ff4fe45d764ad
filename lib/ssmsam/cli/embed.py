"""``ssmsam embed``: volumes -> the embedding store."""

from __future__ import annotations

from pathlib import Path

import click

from ssmsam.cli.command import Program, json_option, path_option
from ssmsam.cli.options import EngineOptions, engine_options, listed, model_options, on_cuda, recorded, worked_on
from ssmsam.cluster import EmbedStudy, Model
from ssmsam.models.weights import find_weights, weights_digest


@click.command(cls=Program, stopped="what was finished is kept, start again to go on")
@click.argument("studies")
@path_option("--out", metavar="DIR", help="Keep what became of each study there, and a table.")
@engine_options
@model_options
@click.option("--download", is_flag=True, help="Fetch missing weights.")
@json_option
def command(
    *, studies: str, out: Path | None, engine: EngineOptions, model: Model, download: bool, record: Path | None
) -> int:
    """Fill the embedding store for all volumes of a folder, so that the first click on any slice is a fast one.

    STUDIES is a folder as the server's (files, or folders of DICOM), a list of such paths (.txt), or the address of a
    DICOMweb store. What is already in the store is not computed again, so this may be stopped (Ctrl-C) and started
    again at any time. With --workers or --cluster several processes share the work; the store may be a URL then
    (s3://bucket/prefix).
    """
    found = listed(studies)
    weights = find_weights(
        model.encoder, folder=model.weights, download=download, allow_unverified=model.allow_unverified
    )
    print(f"{len(found)} volumes, encoder {model.encoder} on {on_cuda(model.device)}, store {model.store}")
    work = EmbedStudy(model=model)
    cohort = worked_on(found, work, out=out, engine=engine)
    titles = {study.name: study.title for study in found}
    done = []
    for one in cohort.outcomes:
        told = one.details if one.state == "done" else {"error": one.reason}
        done.append({"name": titles[one.study], "seconds": one.seconds, **told})
        if one.state == "done":
            encoded = f"{told['slices']} slices, {told['encoded']} of them new"
            print(f"{titles[one.study]}: {encoded}, {one.seconds:.1f} s")
    data = {"set": Path(studies).name, "cases": list(titles.values())}
    result = {"encoder": model.encoder, "studies": done}
    return recorded(cohort, work, record, result, data=data, weights={model.encoder: weights_digest(weights)})
