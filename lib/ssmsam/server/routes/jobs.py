"""What the server is at work on, how to stop one piece of it, and long work on many images at once."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.server.routes.common import Admin, Annotator, AnyUser, App, CheckedJson, may_stop, reader
from ssmsam.server.tasks.cohort import COHORT, submit
from ssmsam.service.errors import NotYours
from ssmsam.service.jobs import Job, State, UnknownJob

router = APIRouter(prefix="/jobs", tags=["Jobs"])


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


@router.get("", summary="What runs, what waits, and what ended lately; trainings too")
def jobs(app: App, user: AnyUser) -> JobList:
    return JobList(jobs=[JobModel.of(job) for job in app.jobs.listed()])


@router.get("/{name}", summary="One job: its phase, how much of it is done, and the seconds that it will still take")
def one(app: App, user: AnyUser, name: str) -> JobModel:
    return JobModel.of(app.jobs.get(name))


@router.delete("/{name}", summary="Stop a job, and no other; one that ended stays as it is")
def stop(app: App, user: Annotator, name: str) -> JobModel:
    """Where people log in, the account that started a job and administrators may stop it. Without logins the server
    believes whoever asks, as MONAI Label does."""
    job = app.jobs.get(name)
    if not may_stop(job, user):
        whose = job.owner or "nobody in particular"
        raise NotYours(f"the job {job.title!r} belongs to {whose}: ask them, or an administrator, to stop it")
    try:
        return JobModel.of(app.jobs.cancel(job.id))
    except UnknownJob:  # it has just ended and was forgotten
        return JobModel.of(job)


class CohortRequest(BaseModel):
    """Which images, and what with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"images": ["case07", "case08"]}]})

    images: list[str] = Field([], description="The ids of images; all that can be read where it is empty")
    method: str = Field(FEWSHOT, description="Of segment: whose task checkpoint")
    checkpoint: str = Field("", description="Of segment: its name; empty for the one that answers")
    client_id: str = Field("", description="Who asks")


cohort = APIRouter(prefix="/cohort", tags=["Jobs"], route_class=CheckedJson)


@cohort.post("/{work}", summary="Embed all slices of many images, or segment them: a job")
def begin(
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
    return JobModel.of(submit(app, job, work, images=asked.images, method=asked.method, checkpoint=asked.checkpoint))
