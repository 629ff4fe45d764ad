"""Long work on many images at once, on this machine's other processes or on a cluster."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.server.routes.common import Admin, App, CheckedJson, reader
from ssmsam.server.routes.jobs import JobModel
from ssmsam.server.tasks.cohort import COHORT, submit
from ssmsam.service.jobs import Job

router = APIRouter(prefix="/cohort", tags=["Jobs"], route_class=CheckedJson)


class CohortRequest(BaseModel):
    """Which images, and what with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"images": ["case07", "case08"]}]})

    images: list[str] = Field([], description="The ids of images; all that can be read where it is empty")
    method: str = Field(FEWSHOT, description="Of segment: whose task checkpoint")
    checkpoint: str = Field("", description="Of segment: its name; empty for the one that answers")
    client_id: str = Field("", description="Who asks")


@router.post("/{work}", summary="Embed all slices of many images, or segment them: a job")
def cohort(
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
