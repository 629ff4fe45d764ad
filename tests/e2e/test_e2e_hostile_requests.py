"""Requests that follow the server's own description in all ways that nobody would think of: none may break it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from sample_cases import CT, MR, copy_of
from serving import Server

schemathesis = pytest.importorskip("schemathesis")

SECONDS = 60
"""Nothing that these requests can ask for takes longer: everything else hangs."""
FEW, MANY = 4, 150


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile-studies")
    for name in (CT, MR):
        copy_of(name, folder)
    return folder


@pytest.fixture(scope="module")
def server(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for these tests alone: they remove and change what they find."""
    home = tmp_path_factory.mktemp("hostile-home")
    running = Server(studies=studies, home=home, conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def answers(server: Server, requests_each: int) -> Iterator[tuple[str, Any]]:
    """(request, answer) for so many requests to every route; in two of three the names are of things that exist."""
    document = requests.get(f"{server.url}/openapi.json", timeout=SECONDS).json()
    info = requests.get(f"{server.url}/info/", timeout=SECONDS).json()
    known = {"model": [*info["models"], *info["trainers"]], "strategy": list(info["strategies"]), "image": [CT, MR]}
    known |= {"method": list(info["scoring"]), "output": ["json", "image", "all"], "id": [CT, MR], "label": [CT, MR]}
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        yield from sent_to(found.ok(), server, known, requests_each)


def sent_to(operation: Any, server: Server, known: dict[str, list[str]], count: int) -> list[tuple[str, Any]]:
    """So many requests to one route."""
    seen: list[tuple[str, Any]] = []

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        drawn = random.Random(repr(case.body) + repr(case.query))
        for values in (case.path_parameters or {}, case.query or {}):
            for name in values:
                if name in known and drawn.random() < 2 / 3:
                    values[name] = drawn.choice(known[name])
        answer = case.call(base_url=server.url, timeout=SECONDS)
        seen.append((f"{case.method} {answer.request.url} {case.body!r}"[:2000], answer))

    send()
    return seen


def check(server: Server, requests_each: int) -> None:
    sent, broken = 0, []
    for request, answer in answers(server, requests_each):
        sent += 1
        if answer.status_code >= 500:
            broken.append(f"{answer.status_code} {request}: {answer.text[:300]}")
    assert broken == []
    assert sent > 30 * requests_each
    assert requests.get(f"{server.url}/info/", timeout=SECONDS).status_code == 200


@pytest.mark.timeout(300)
def test_no_request_breaks_the_server(server: Server) -> None:
    check(server, FEW)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_thousands_of_requests_do_not_break_the_server(server: Server) -> None:
    check(server, MANY)
