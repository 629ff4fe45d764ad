"""What the server is at work on, and how to stop one piece of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ssmsam.server.background import EMBED
from ssmsam.server.errors import InvalidRequest, NotKnown
from ssmsam.server.queue import trainings
from ssmsam.server.routes.common import Annotator, AnyUser, the_app

router = APIRouter(prefix="/jobs", tags=["Jobs"])


@router.get("", summary="What runs, what waits, and what ended lately; trainings too")
@router.get("/", include_in_schema=False)
def jobs(user: AnyUser) -> dict[str, Any]:
    return {"jobs": _listed()}


@router.get("/{name}", summary="One job: its phase, how much of it is done, and the seconds that it will still take")
def one(user: AnyUser, name: str) -> dict[str, Any]:
    return _known(name)


@router.delete("/{name}", summary="Stop a job, and no other; one that ended stays as it is")
def stop(user: Annotator, name: str) -> dict[str, Any]:
    job = _known(name)
    if job["kind"] == "train":
        raise InvalidRequest("this is a training: DELETE /train/ stops it, and those that wait")
    app = the_app()
    return app.background.cancel(name) if job["kind"] == EMBED else app.jobs.cancel(name).as_json()


def _listed() -> list[dict[str, Any]]:
    app = the_app()
    found = [*(job.as_json() for job in app.jobs.listed()), *trainings(app.trainers), *app.background.listed()]
    return sorted(found, key=lambda job: {"running": 0, "queued": 1}.get(job["state"], 2))


def _known(name: str) -> dict[str, Any]:
    """Raises NotKnown."""
    found = {job["id"]: job for job in _listed()}
    if name not in found:
        raise NotKnown("job", name, found, step="It may have ended long ago; GET /jobs lists what is known")
    return found[name]
