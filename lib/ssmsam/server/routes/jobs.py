"""What the server is at work on, how to stop it, and long work in processes of its own: clicks stay quick meanwhile.

MONAI Label starts trainings, batches and scores. A cohort runs here or on a cluster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from pydantic import BaseModel, ConfigDict, Field

from ssmsam.cluster import Cohort, EmbedStudy, EngineUnavailable, Model, SegmentStudy, Study, open_engine, run_cohort
from ssmsam.cluster.studies import studies_at, studies_of
from ssmsam.cluster.work import Work, task_file
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.server.app import ServerApp
from ssmsam.server.clients.rest import CLIENT, ORIGINAL, STOCK, require_keys
from ssmsam.server.datastore.access import is_dicomweb
from ssmsam.server.routes.common import Admin, Annotator, AnyUser, App, CheckedJson, long, may_stop, reader
from ssmsam.server.tasks.queue import BATCH, SCORE, TRAIN, ProcessJob, stop, submit
from ssmsam.service.errors import InvalidRequest, NotKnown, NotYours
from ssmsam.service.identifiers import safe_name
from ssmsam.service.images import UNUSABLE
from ssmsam.service.jobs import Job, State, UnknownJob

router = APIRouter(route_class=CheckedJson)

COHORT = "cohort"
"""The kind of jobs on a cohort."""
LISTED = 5
"""Failures that a cohort's ``detail`` names: a guess."""


class JobModel(BaseModel):
    """One piece of long work."""

    id: str
    kind: str = Field(description="segment, adapt, embed, store, train, batch_infer, scoring or cohort")
    title: str = Field(description="What it does, for people")
    owner: str = Field(description="The client that asked for it; empty where nobody did")
    image: str = Field(description="The image that it is about; empty for several or none")
    model: str
    phase: str = Field(description="What it does now, a word; done, total and eta_s are about this phase")
    done: int
    total: int
    eta_s: float | None = Field(description="Seconds that the phase will still take, where that is known")
    state: State
    detail: str = Field(description="What came of it, or what went wrong")

    @classmethod
    def of(cls, job: Job) -> JobModel:
        return cls(**job.as_json())


class JobList(BaseModel):
    """What runs, what waits in its order, and what ended lately, the newest first."""

    jobs: list[JobModel]


@router.get("/jobs", tags=["Jobs"], summary="What runs, what waits, and what ended lately; trainings too")
def jobs(app: App, user: AnyUser) -> JobList:
    return JobList(jobs=[JobModel.of(job) for job in app.jobs.listed()])


@router.get(
    "/jobs/{name}", tags=["Jobs"], summary="One job: its phase, how much is done, and the seconds that it still takes"
)
def one(app: App, user: AnyUser, name: str) -> JobModel:
    return JobModel.of(app.jobs.get(name))


@router.delete("/jobs/{name}", tags=["Jobs"], summary="Stop a job, and no other; one that ended stays as it is")
def stop_one(app: App, user: Annotator, name: str) -> JobModel:
    """Where people log in, the account that started a job and administrators may stop it. Without logins the server
    believes whoever asks, as MONAI Label does."""
    job = app.jobs.get(name)
    if not may_stop(job, user):
        whose = job.owner or "nobody in particular"
        raise NotYours(f"the job {job.title!r} belongs to {whose}: ask them, or an administrator, to stop it")
    with suppress(UnknownJob):  # it has just ended and was forgotten
        app.jobs.cancel(job.id)
    return JobModel.of(job)


# --- what MONAI Label does in processes of its own


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Run a model on many images")
@long
def batch_infer(
    app: App,
    user: Admin,
    request: Request,
    model: str,
    images: BatchInferImageType | None = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
) -> Any:
    """In a process of its own, which is a job: ``GET /jobs/{id}`` with the ``id`` of the answer says how many images
    are done, and ``DELETE`` ends it. With ``run_sync`` the answer comes when all is done, and who hangs up ends it.
    """
    app.require_options({} if params is None else params, app.require_model(model))
    # the stock defaults are for GPUs only: without one they divide by the number of GPUs
    options = {"device": app.device, "multi_gpu": False, "max_workers": 1, "save_label": True, **(params or {})}
    options.pop("model", None)
    if isinstance(options.get("images"), list):
        options["images"] = [app.images.require(str(image)) for image in options["images"]]
    if "label_tag" in options:
        safe_name(str(options["label_tag"]), what="a label tag")
    wanted = {"model": model, "images": images or BatchInferImageType.IMAGES_ALL, **options}
    return _run(app, BATCH, wanted, request, run_sync=run_sync)


@router.delete("/batch/infer", tags=["Infer"], summary="Stop the batch inference, and those that wait")
def stop_batch(app: App, user: Admin) -> Any:
    """The stopped task, the running one if any."""
    stopped = stop(app.jobs, BATCH)
    return stopped[0] if stopped else None


@router.post("/train/{model}", tags=["Train"], summary="Train a model")
@long
def train(
    app: App,
    user: Admin,
    request: Request,
    model: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """In a process of its own, which is a job as batches are; ``enqueue`` lets it wait for the one that runs."""
    task = app.require_trainer(model)
    require_keys(params or {}, [*CLIENT, *STOCK, *task.config()], where="the request")
    task.require(params or {})  # its process could only end with an error that nobody reads
    return _run(app, TRAIN, {"model": model, **(params or {})}, request, run_sync=run_sync, enqueue=enqueue)


@router.delete("/train/", tags=["Train"], summary="Stop training, and what waits to be trained")
def stop_training(app: App, user: Admin) -> Any:
    """The stopped task, the running one if any; ``queued`` says how many were taken from the queue."""
    stopped = stop(app.jobs, TRAIN)
    ran = [task for task in stopped if "details" in task]
    return {**stopped[0], "queued": len(stopped) - 1} if ran else (stopped[0] if stopped else None)


@router.post("/scoring/{method}", tags=["Scoring"], summary="Score labels")
@long
def score(
    app: App,
    user: Annotator,
    request: Request,
    method: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
) -> Any:
    known = app.info()["scoring"]
    if method not in known:
        raise NotKnown("scoring method", method, known)
    return _run(app, SCORE, {"method": method, **(params or {})}, request, run_sync=run_sync)


def _run(
    app: ServerApp, kind: str, wanted: dict[str, Any], request: Request, *, run_sync: bool, enqueue: bool = False
) -> Any:
    """The task of work in a process of its own, or with ``run_sync`` what came of it here.

    As in MONAI Label one that runs already is 429, unless it is to be queued.
    """
    if app.jobs.active(kind) and not enqueue:
        raise HTTPException(429, f"a task of this kind ({kind}) is already running: wait for it, or see GET /jobs")
    owner = reader(wanted.get("client_id"), request)
    if run_sync:
        here = {TRAIN: app.train, BATCH: app.batch_infer, SCORE: app.scoring}[kind]
        job = Job(kind, title=f"{kind} in a request", model=str(wanted.get("model") or ""), brief=True, owner=owner)
        with app.jobs.running(job):
            return here(wanted)
    measure = app.require_trainer(wanted["model"]).stats if kind == TRAIN else dict
    return submit(app.jobs, ProcessJob(kind, wanted, measure=measure, owner=owner))


# --- cohorts


class CohortRequest(BaseModel):
    """Which images, and what with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"images": ["case07", "case08"]}]})

    images: list[str] = Field([], description="The ids of images; all that can be read where it is empty")
    method: str = Field(FEWSHOT, description="Of segment: whose task checkpoint")
    checkpoint: str = Field("", description="Of segment: its name; empty for the one that answers")
    client_id: str = Field("", description="Who asks")


@router.post("/cohort/{work}", tags=["Jobs"], summary="Embed all slices of many images, or segment them: a job")
def begin_cohort(
    app: App, user: Admin, request: Request, work: Literal["embed", "segment"], params: CohortRequest | None = None
) -> JobModel:
    """It runs in processes of its own: on the Dask scheduler that the server was started with (`--conf cluster
    tcp://HOST:PORT`), else on this machine (`--conf cluster_workers N`). `GET /jobs/{id}` says how many images are
    done, and what came of them at the end; `DELETE` stops it, and what is done stays. The masks of `segment` are kept
    beside the images as a model's (tag `original`); what people drew stays as it is.
    """
    asked = params or CohortRequest.model_validate({})
    if app.jobs.active(COHORT):
        raise HTTPException(429, "work on many images is already running: wait for it, or see GET /jobs")
    job = Job(
        COHORT,
        title=f"{work} {len(asked.images) or 'all'} images",
        owner=reader(asked.client_id, request),
        model=asked.method if work == "segment" else "",
    )
    studies, configuration = _studies(app, asked.images), app.configuration
    model = Model(
        encoder=configuration.encoder,
        store=str(configuration.store),
        store_gb=configuration.store_gb,
        weights=None if configuration.weights is None else str(configuration.weights),
        device=None if configuration.device == "auto" else configuration.device,
    )
    if work == "embed":
        return JobModel.of(app.jobs.submit(job, lambda job: _work_on(app, job, studies, EmbedStudy(model=model))))
    task = task_file(_checkpoint(app, asked.method, asked.checkpoint))

    def segment(job: Job) -> None:
        shared = configuration.store.parent  # with the store, it is what the workers have to see
        with tempfile.TemporaryDirectory(prefix="cohort-", dir=shared) as out:
            segments = SegmentStudy(model=model, method=asked.method, out=out, **task)
            _keep(app, _work_on(app, job, studies, segments), Path(out), asked.method)

    return JobModel.of(app.jobs.submit(job, segment))


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


def _work_on(app: ServerApp, job: Job, studies: Sequence[Study], work: Work) -> Cohort:
    """What came of it stands in the job's ``detail``. Raises Cancelled, and EngineUnavailable with the next step."""
    workers, cluster = app.configuration.cluster_workers, app.configuration.cluster
    try:
        with open_engine(workers=workers, cluster=cluster, own_process=True) as engine:
            cohort = run_cohort(studies, work, engine=engine, progress=job.progress)
    except (ValueError, EngineUnavailable) as error:
        job.detail = str(error)
        raise
    failed = "; ".join(f"{one.study}: {one.reason}" for one in cohort.failed[:LISTED])
    job.detail = f"{cohort.count} images done" + (f". Left out: {failed}" if failed else "")
    return cohort


def _keep(app: ServerApp, cohort: Cohort, out: Path, method: str) -> None:
    """Put the masks beside the images, as a model's proposals: they replace none that a person drew."""
    for outcome in cohort.outcomes:
        if outcome.state == "done":
            numbers = {label: one["number"] for label, one in outcome.details["labels"].items()}
            named = [{"name": label, "idx": number} for label, number in numbers.items()]
            info = {"model": method, "params": {"label_names": numbers}, "label_info": named}
            with suppress(*UNUSABLE):  # it was removed meanwhile
                app.datastore().save_label(outcome.study, str(out / outcome.details["file"]), ORIGINAL, info)
