"""Long work on a real server: whose it is, how it is stopped, and that nobody waits for it who need not."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from sample_cases import CT, LABELS, MR, SAMPLES, Truth, copy_of
from serving import Server
from viewers import TIMEOUT, slicer, submit_slices

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

FREE_S = 1.0
"""Within how long the worker of a client that hung up is free, on a machine that does nothing else."""
PROMPT_S = 0.1
"""The 99th percentile of the seconds that /info/ may take while the server works, on such a machine."""
UNSEEN = ("unseen_a", "unseen_b")
ORGAN = "liver"


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of samples, and of copies of them that nothing was embedded of."""
    folder = tmp_path_factory.mktemp("busy-studies")
    for name in (CT, MR):
        copy_of(name, folder)
    volume = read_volume(SAMPLES / "abdomen" / f"{CT}.nii.gz")
    for number, name in enumerate(UNSEEN, 1):
        longer = np.concatenate([volume.array + number] * 3)
        write_volume(Volume(longer, volume.grid.affine), folder / f"{name}.nii.gz")
    server = Server(studies=folder, home=tmp_path_factory.mktemp("busy-home"))
    try:
        yield server.wait_until_it_answers().wait_until_warm()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def annotated(busy: Server, ct: Truth, tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn = np.where(ct.array == LABELS[ORGAN], 1, 0).astype(np.uint8)
    shows = np.flatnonzero(drawn.any(axis=(1, 2)))
    known = [int(shows[round(share * (len(shows) - 1))]) for share in np.linspace(0, 1, 5)]
    drawn[np.setdiff1d(np.arange(len(drawn)), known)] = 0
    file = tmp_path_factory.mktemp("masks") / "liver.nii.gz"
    write_volume(Volume(drawn, ct.grid.affine), file)
    submit_slices(busy.url, CT, file, {ORGAN: 1}, known)


def crowd() -> float:
    """How many times slower everything is now than on a machine that does nothing else."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def jobs(server: Server, *, kind: str = "", running: bool = False) -> list[dict[str, Any]]:
    """Those that did not end."""
    states = ("running",) if running else ("running", "queued")
    found = requests.get(f"{server.url}/jobs", timeout=TIMEOUT).json()["jobs"]
    return [job for job in found if job["state"] in states and (not kind or job["kind"] == kind)]


def wait_for(condition: Callable[[], Any], *, seconds: float = 60.0) -> float:
    """The seconds until something holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return time.monotonic() - started


def rest(server: Server) -> None:
    """Until the server is at work on nothing."""
    for job in jobs(server):
        requests.delete(f"{server.url}/jobs/{job['id']}", timeout=TIMEOUT)
    wait_for(lambda: not jobs(server))


class Caller:
    """A client that sends a request and may hang up before the answer."""

    def __init__(self, server: Server, path: str, *, form: dict[str, Any] | None = None, body: Any = None) -> None:
        if form is not None:
            part = f'--B\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(form)}\r\n--B--\r\n'
            kind, sent = "multipart/form-data; boundary=B", part.encode()
        else:
            kind, sent = "application/json", json.dumps(body).encode()
        where = urlsplit(server.url)
        self._link = socket.create_connection((where.hostname, where.port))
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(sent)}\r\n\r\n"
        self._link.sendall(head.encode() + sent)

    def hang_up(self) -> None:
        self._link.close()


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (f"/infer/sam_3d?image={UNSEEN[0]}", {"foreground": [[80, 80, 60]], "label": "away", "client_id": "away"}),
        (f"/infer/fewshot?image={UNSEEN[1]}", {"client_id": "away"}),
        (f"/infer/fewshot?image={CT}", {"client_id": "away", "adapt": True, "wait": True, "budget_s": 60}),
    ],
    ids=["propagation", "few-shot", "adaptation"],
)
def test_who_hangs_up_frees_the_worker(busy: Server, annotated: None, path: str, form: dict[str, Any]) -> None:
    rest(busy)
    caller = Caller(busy, path, form=form)
    wait_for(lambda: any(job["owner"] == "away" and job["phase"] for job in jobs(busy, kind="segment", running=True)))
    time.sleep(0.5)
    assert jobs(busy, kind="segment"), "the work was over too soon to say anything"
    caller.hang_up()
    assert wait_for(lambda: not jobs(busy, kind="segment")) < FREE_S * crowd()


def test_who_hangs_up_ends_a_batch_that_was_waited_for(busy: Server) -> None:
    rest(busy)
    caller = Caller(
        busy, "/batch/infer/fewshot?run_sync=true", body={"client_id": "away", "labels": [ORGAN], "label_tag": "trial"}
    )
    wait_for(lambda: jobs(busy, kind="segment", running=True))
    assert [job["owner"] for job in jobs(busy, kind="batch_infer")] == ["away"]
    caller.hang_up()
    assert wait_for(lambda: not jobs(busy, kind="batch_infer") and not jobs(busy, kind="segment")) < FREE_S * crowd()


def test_an_adaptation_is_stopped_by_its_owner_alone(busy: Server, annotated: None) -> None:
    rest(busy)
    url, options = busy.url, {"adapt": True, "budget_s": 60}
    mine = slicer(url, "fewshot", CT, client_id="mine", **options).params["job"]
    theirs = slicer(url, "fewshot", CT, client_id="theirs", **options).params["job"]
    assert mine != theirs, "stopping the one would stop the other"
    assert requests.delete(f"{url}/heads/adaptation?client_id=nobody", timeout=TIMEOUT).json() == {"cancelled": False}
    assert {job["id"] for job in jobs(busy, kind="adapt")} == {mine, theirs}
    assert requests.delete(f"{url}/heads/adaptation?client_id=mine", timeout=TIMEOUT).json() == {"cancelled": True}
    wait_for(
        lambda: requests.get(f"{url}/jobs/{mine}", timeout=TIMEOUT).json()["state"] == "cancelled",
        seconds=FREE_S * crowd(),
    )
    wait_for(
        lambda: [job["id"] for job in jobs(busy, kind="adapt", running=True)] == [theirs], seconds=FREE_S * crowd()
    )
    assert requests.delete(f"{url}/jobs/{theirs}", timeout=TIMEOUT).status_code == 200
    wait_for(lambda: not jobs(busy, kind="adapt"), seconds=FREE_S * crowd())


def test_trainings_wait_for_each_other_and_are_stopped_one_by_one(busy: Server, annotated: None) -> None:
    rest(busy)
    url, long = busy.url, {"steps": 10_000, "budget_s": 600, "client_id": "trainer"}
    first = requests.post(f"{url}/train/fewshot_decoder", json=long, timeout=TIMEOUT).json()["id"]
    assert requests.post(f"{url}/train/fewshot_decoder", json=long, timeout=TIMEOUT).status_code == 429
    queued = [
        requests.post(f"{url}/train/fewshot_decoder?enqueue=true", json=long, timeout=TIMEOUT).json()["id"]
        for _ in range(2)
    ]
    wait_for(lambda: [(job["id"], job["owner"]) for job in jobs(busy, running=True)] == [(first, "trainer")])
    assert requests.delete(f"{url}/jobs/{queued[0]}", timeout=TIMEOUT).json()["state"] == "cancelled"
    assert [job["id"] for job in jobs(busy, kind="train")] == [first, queued[1]]
    stopped = requests.delete(f"{url}/jobs/{first}", timeout=TIMEOUT)
    assert stopped.status_code == 200
    wait_for(lambda: [job["id"] for job in jobs(busy, kind="train", running=True)] == [queued[1]], seconds=5)
    told = requests.get(f"{url}/train/?all=true", timeout=TIMEOUT).json()
    assert [task["status"] for task in told] == ["STOPPED", "STOPPED", "RUNNING"]
    assert requests.delete(f"{url}/train/", timeout=TIMEOUT).json()["id"] == queued[1]
    assert not jobs(busy, kind="train")
    ended = requests.get(f"{url}/jobs", timeout=TIMEOUT).json()["jobs"]
    assert {job["id"]: job["state"] for job in ended if job["kind"] == "train"} == dict.fromkeys(
        [first, *queued], "cancelled"
    )


def test_info_does_not_wait_for_adaptation_and_embedding(busy: Server, annotated: None) -> None:
    rest(busy)
    slicer(busy.url, "fewshot", CT, client_id="long", adapt=True, budget_s=120)
    requests.post(f"{busy.url}/datastore/annotations/opened?image={UNSEEN[0]}&client_id=long", timeout=TIMEOUT)
    wait_for(lambda: {job["kind"] for job in jobs(busy, running=True)} >= {"adapt", "embed"})
    seconds = []
    while len(seconds) < 150:
        started = time.perf_counter()
        requests.get(f"{busy.url}/info/", timeout=TIMEOUT).raise_for_status()
        seconds.append(time.perf_counter() - started)
        time.sleep(0.02)
    worked = {job["kind"] for job in jobs(busy, running=True)}
    rest(busy)
    p50, p99 = np.percentile(seconds, [50, 99])
    print(f"/info/: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, at work at the end: {sorted(worked)}")
    assert p99 < PROMPT_S * crowd()


def test_the_document_describes_a_job(busy: Server) -> None:
    document = requests.get(f"{busy.url}/openapi.json", timeout=TIMEOUT).json()
    answer = document["paths"]["/jobs/{name}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    model = document["components"]["schemas"][answer["$ref"].rpartition("/")[2]]
    assert {"id", "owner", "phase", "done", "total", "eta_s", "state"} <= set(model["properties"])
    assert requests.get(f"{busy.url}/jobs/none", timeout=TIMEOUT).status_code == 404


def test_a_stopped_request_is_told_so(busy: Server, tmp_path: Path) -> None:
    rest(busy)
    caller = Caller(busy, f"/infer/sam_3d?image={UNSEEN[1]}", form={"foreground": [[80, 80, 60]], "label": "stopped"})
    wait_for(lambda: jobs(busy, kind="segment", running=True))
    (job,) = jobs(busy, kind="segment")
    assert job["owner"].endswith("@127.0.0.1"), "a client without a name is told apart by its machine"
    requests.delete(f"{busy.url}/jobs/{job['id']}", timeout=TIMEOUT).raise_for_status()
    answer = ""
    while "cancelled" not in answer and (piece := caller._link.recv(4000)):  # headers and body may come apart
        answer += piece.decode()
    assert " 422 " in answer.splitlines()[0]
    assert "cancelled" in answer
