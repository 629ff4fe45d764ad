"""What the server is at work on, and how to stop one piece of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ssmsam.server.errors import NotKnown
from ssmsam.server.routes.common import Annotator, AnyUser, the_app
from ssmsam.service.jobs import UnknownJob

router = APIRouter(prefix="/jobs", tags=["Jobs"])


@router.get("", summary="What runs, what waits, and what ended lately")
@router.get("/", include_in_schema=False)
def jobs(user: AnyUser) -> dict[str, Any]:
    return {"jobs": [job.as_json() for job in the_app().jobs.listed()]}


@router.get("/{name}", summary="One job: its phase, how much of it is done, and the seconds that it will still take")
def one(user: AnyUser, name: str) -> dict[str, Any]:
    try:
        return the_app().jobs.get(name).as_json()
    except UnknownJob:
        raise _unknown(name) from None


@router.delete("/{name}", summary="Stop a job, and no other; one that ended stays as it is")
def stop(user: Annotator, name: str) -> dict[str, Any]:
    try:
        return the_app().jobs.cancel(name).as_json()
    except UnknownJob:
        raise _unknown(name) from None


def _unknown(name: str) -> NotKnown:
    known = [job.id for job in the_app().jobs.listed()]
    return NotKnown("job", name, known, step="It may have ended long ago; GET /jobs lists what is known")
