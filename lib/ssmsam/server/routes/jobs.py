"""What the server is at work on, and how to stop one piece of it."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ssmsam.server.app import ServerApp
from ssmsam.server.routes.common import Annotator, AnyUser, App, may_stop
from ssmsam.service.errors import NotKnown, NotYours
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
@router.get("/", include_in_schema=False)
def jobs(app: App, user: AnyUser) -> JobList:
    return JobList(jobs=[JobModel.of(job) for job in app.jobs.listed()])


@router.get("/{name}", summary="One job: its phase, how much of it is done, and the seconds that it will still take")
def one(app: App, user: AnyUser, name: str) -> JobModel:
    return JobModel.of(_known(app, name))


@router.delete("/{name}", summary="Stop a job, and no other; one that ended stays as it is")
def stop(app: App, user: Annotator, name: str) -> JobModel:
    """Where people log in, the account that started a job and administrators may stop it. Without logins the server
    believes whoever asks, as MONAI Label does."""
    job = _known(app, name)
    if not may_stop(job, user):
        whose = job.owner or "nobody in particular"
        raise NotYours(f"the job {job.title!r} belongs to {whose}: ask them, or an administrator, to stop it")
    try:
        return JobModel.of(app.jobs.cancel(job.id))
    except UnknownJob:  # it has just ended and was forgotten
        return JobModel.of(job)


def _known(app: ServerApp, name: str) -> Job:
    """Raises NotKnown."""
    queue = app.jobs
    try:
        return queue.get(name)
    except UnknownJob:
        step = "It may have ended long ago; GET /jobs lists what is known"
        raise NotKnown("job", name, [job.id for job in queue.listed()], step=step) from None
