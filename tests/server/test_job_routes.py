"""Who may see a job, and who may stop it, with logins and without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints.user.auth import DEFAULT_USER, User, get_current_user

from ssmsam.progress import stop_if_cancelled
from ssmsam.server.errors import install_handlers
from ssmsam.server.routes import checkpoints
from ssmsam.server.routes import jobs as routes
from ssmsam.server.routes.common import Annotator, AnyUser, the_app, watched
from ssmsam.service.jobs import Job, Jobs

ANNOTATOR = [settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR]
ADMIN = [*ANNOTATOR, settings.MONAI_LABEL_AUTH_ROLE_ADMIN]


@pytest.fixture
def queue() -> Iterator[Jobs]:
    queue = Jobs(workers=8)
    yield queue
    queue.stop()


@pytest.fixture
def web(queue: Jobs) -> TestClient:
    service = SimpleNamespace(method="fewshot")
    server = SimpleNamespace(jobs=queue, services={"fewshot": service}, require_service=lambda name: service)
    app = FastAPI()
    app.dependency_overrides[the_app] = lambda: server
    app.include_router(routes.router)
    app.include_router(checkpoints.router)
    install_handlers(app)
    return TestClient(app, client=("10.0.0.1", 1))


@pytest.fixture
def log_in(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)

    def log_in(name: str, roles: list[str]) -> None:
        web.app.dependency_overrides[get_current_user] = lambda: User(username=name, roles=roles)  # type: ignore[attr-defined]

    return log_in


def adaptation(queue: Jobs, **options: Any) -> Job:
    """One that goes on until it is stopped."""
    began = threading.Event()

    def work(job: Job) -> None:
        job.progress("adapt", 1, 30)
        began.set()
        while not job.token.wait(0.002):
            pass
        stop_if_cancelled()

    job = queue.submit(Job("adapt", model="fewshot", title="fewshot adapts", **options), work)
    assert began.wait(5)
    return job


def test_everybody_sees_every_job(web: TestClient, queue: Jobs) -> None:
    job = adaptation(queue, owner="reader-a", login="admin")
    (told,) = web.get("/jobs").json()["jobs"]
    alone = web.get(f"/jobs/{job.id}").json()
    assert {**told, "eta_s": None} == {**alone, "eta_s": None}
    assert {key: told[key] for key in ("owner", "phase", "done", "total", "state")} == {
        "owner": "reader-a", "phase": "adapt", "done": 1, "total": 30, "state": "running",
    }  # fmt: skip
    assert "login" not in told
    unknown = web.get("/jobs/none")
    assert (unknown.status_code, job.id in unknown.json()["detail"]) == (404, True)


def test_without_logins_anybody_may_stop_a_job_and_no_other_ends(web: TestClient, queue: Jobs) -> None:
    mine, theirs = (adaptation(queue, owner=name, login=DEFAULT_USER.username) for name in ("mine", "theirs"))
    assert web.delete(f"/jobs/{mine.id}").status_code == 200
    assert mine.result.exception(timeout=5) is not None
    assert (mine.state, theirs.state, theirs.cancelled) == ("cancelled", "running", False)


def test_with_logins_another_s_job_is_for_administrators(
    web: TestClient, queue: Jobs, log_in: Callable[[str, list[str]], None]
) -> None:
    job = adaptation(queue, owner="same-client-id", login="anna")
    log_in("ben", ANNOTATOR)
    assert web.get(f"/jobs/{job.id}").status_code == 200
    refused = web.delete(f"/jobs/{job.id}")
    assert (refused.status_code, "same-client-id" in refused.json()["detail"]) == (403, True)
    assert "administrator" in refused.json()["detail"]
    assert not job.cancelled
    log_in("anna", ANNOTATOR)
    assert web.delete(f"/jobs/{job.id}").status_code == 200
    assert job.cancelled
    job = adaptation(queue, owner="same-client-id", login="anna")
    log_in("root", ADMIN)
    assert web.delete(f"/jobs/{job.id}").status_code == 200
    assert job.cancelled


def test_the_alias_stops_the_caller_s_own(web: TestClient, queue: Jobs) -> None:
    unnamed, named = adaptation(queue, owner="@10.0.0.1"), adaptation(queue, owner="reader-a")
    elsewhere, embedding = adaptation(queue, owner="@10.0.0.2"), Job("embed", owner="reader-a", model="fewshot")
    assert web.delete("/heads/adaptation").json() == {"cancelled": True}
    assert [one.cancelled for one in (unnamed, named, elsewhere)] == [True, False, False]
    with queue.running(embedding):
        assert web.delete("/heads/adaptation?client_id=reader-a").json() == {"cancelled": True}
        assert (named.cancelled, embedding.cancelled, elsewhere.cancelled) == (True, False, False)
        assert web.delete("/heads/adaptation?client_id=nobody").json() == {"cancelled": False}


def test_with_logins_a_client_id_is_no_proof(
    web: TestClient, queue: Jobs, log_in: Callable[[str, list[str]], None]
) -> None:
    job = adaptation(queue, owner="reader-a", login="anna")
    log_in("ben", ANNOTATOR)
    assert web.delete("/heads/adaptation?client_id=reader-a").json() == {"cancelled": False}
    assert not job.cancelled
    log_in("anna", ANNOTATOR)
    assert web.delete("/heads/adaptation").json() == {"cancelled": True}
    assert job.cancelled


def test_jobs_are_of_the_account_whose_request_makes_them(
    queue: Jobs, web: TestClient, log_in: Callable[[str, list[str]], None]
) -> None:
    """Whatever makes them: what is embedded and what goes to an archive names no account by itself."""
    made: list[Job] = []
    router = APIRouter(prefix="/made")

    @router.post("/here")
    def here(user: AnyUser) -> None:
        made.append(Job("embed"))

    @router.post("/long")
    async def long(user: Annotator, request: Request) -> None:
        await watched(request, lambda: made.append(Job("store")))

    web.app.include_router(router)  # type: ignore[attr-defined]
    for name in ("anna", "ben"):
        log_in(name, ANNOTATOR)
        for path in ("/made/here", "/made/long"):
            assert web.post(path).status_code == 200
    assert [(job.kind, job.login) for job in made] == [
        ("embed", "anna"), ("store", "anna"), ("embed", "ben"), ("store", "ben"),
    ]  # fmt: skip
    assert Job("embed").login == "", "outside of a request"
    with queue.running(made[0]):
        assert web.delete(f"/jobs/{made[0].id}").status_code == 403
        log_in("anna", ANNOTATOR)
        assert web.delete(f"/jobs/{made[0].id}").status_code == 200
        assert made[0].cancelled
