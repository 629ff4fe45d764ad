"""Long work on many studies, as jobs: it runs in processes of its own, here or on a cluster, and clicks stay quick."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssmsam.cluster import Cohort, EmbedStudy, EngineUnavailable, Model, SegmentStudy, Study, open_engine, run_cohort
from ssmsam.cluster.studies import studies_at, studies_of
from ssmsam.cluster.work import Work, task_file
from ssmsam.server.app import ServerApp
from ssmsam.server.clients.rest import ORIGINAL
from ssmsam.server.datastore.access import is_dicomweb
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import UNUSABLE
from ssmsam.service.jobs import Job

COHORT = "cohort"
"""The kind of these jobs."""


def submit(app: ServerApp, job: Job, work: str, *, images: Sequence[str], method: str, checkpoint: str) -> Job:
    """Queue work on images: ``embed`` their slices, or ``segment`` them with a task checkpoint, which replaces what a
    model proposed before and nothing that a person drew.

    Raises NotKnown and InvalidRequest.
    """
    studies = _studies(app, images)
    configuration = app.configuration
    model = Model(
        encoder=configuration.encoder,
        store=str(configuration.store),
        store_gb=configuration.store_gb,
        weights=None if configuration.weights is None else str(configuration.weights),
        device=None if configuration.device == "auto" else configuration.device,
    )
    if work == "embed":
        return app.jobs.submit(job, lambda job: _run(app, job, studies, EmbedStudy(model=model)))
    task = task_file(_checkpoint(app, method, checkpoint))

    def segment(job: Job) -> None:
        shared = configuration.store.parent  # with the store, it is what the workers have to see
        with tempfile.TemporaryDirectory(prefix="cohort-", dir=shared) as out:
            done = _run(app, job, studies, SegmentStudy(model=model, method=method, out=out, **task))
            _keep(app, done, Path(out), method)

    return app.jobs.submit(job, segment)


def _studies(app: ServerApp, images: Sequence[str]) -> list[Study]:
    """The studies of the images; all that can be used where none are named. Raises NotKnown."""
    for image in images:
        app.images.require(image)
    if is_dicomweb(app.studies):
        found = {one.name: one for one in studies_of(app.studies, modalities=app.configuration.modalities)}
        return [found[name] for name in images or found if name in found]
    usable = images or app.images.usable(app.datastore().list_images())
    return studies_at({name: str(app.datastore().get_image_uri(name)) for name in usable})


def _checkpoint(app: ServerApp, method: str, name: str) -> Path:
    """The file of a checkpoint, of the active one where none is named. Raises UnknownCheckpoint, InvalidRequest."""
    registry = app.require_service(method).registry
    chosen = name or registry.state.active
    if not chosen:
        raise InvalidRequest("there is no task checkpoint yet: annotate a few slices and run the few-shot model first")
    return registry.path(chosen)


def _run(app: ServerApp, job: Job, studies: Sequence[Study], work: Work) -> Cohort:
    """What came of it stands in the job's ``detail``. Raises Cancelled, and EngineUnavailable with the next step."""
    try:
        with open_engine(
            workers=app.configuration.cluster_workers, cluster=app.configuration.cluster, own_process=True
        ) as engine:
            cohort = run_cohort(studies, work, engine=engine, progress=job.progress)
    except (ValueError, EngineUnavailable) as error:
        job.detail = str(error)
        raise
    failed = "; ".join(f"{one.study}: {one.reason}" for one in cohort.failed[:_LISTED])
    job.detail = f"{cohort.count} images done"
    job.detail += f". Left out: {failed}" if failed else ""
    return cohort


_LISTED = 5
"""Failures that a job's detail names: a guess."""


def _keep(app: ServerApp, cohort: Cohort, out: Path, method: str) -> None:
    """Put the masks beside the images, as a model's proposals."""
    for outcome in cohort.outcomes:
        if outcome.state != "done":
            continue
        numbers: dict[str, Any] = {label: one["number"] for label, one in outcome.details["labels"].items()}
        named = [{"name": label, "idx": number} for label, number in numbers.items()]
        info = {"model": method, "params": {"label_names": numbers}, "label_info": named}
        with suppress(*UNUSABLE):  # it was removed meanwhile
            app.datastore().save_label(outcome.study, str(out / outcome.details["file"]), ORIGINAL, info)
