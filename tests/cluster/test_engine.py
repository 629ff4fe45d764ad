"""The same run on several processes and on a scheduler with workers of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dask_processes import Processes, free_port
from planted_work import CountBytes, Squares, noted

from ssmsam.cluster import EngineUnavailable, Study, Tls, engine, open_engine, run_cohort, studies_of
from ssmsam.progress import Cancelled

pytest.importorskip("distributed")


@pytest.fixture
def processes() -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def start(*options: str, scheme: str = "tcp") -> Processes:
        made.append(Processes(*options, scheme=scheme))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def test_two_processes_do_what_one_does(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    alone = run_cohort(studies, CountBytes(str(notes)))
    with open_engine(workers=2) as several:
        assert several.workers == 2
        together = run_cohort(studies, CountBytes(str(notes), seconds=0.2), engine=several, out=tmp_path / "out")
        by = {one.details["pid"] for one in together.outcomes if one.state == "done"}
        threads = several._client.run(lambda: __import__("os").environ["OMP_NUM_THREADS"])
        hosts = {worker["host"] for worker in several._client.scheduler_info()["workers"].values()}
    assert [(one.study, one.state, one.reason) for one in together.outcomes] == [
        (one.study, one.state, one.reason) for one in alone.outcomes
    ]
    assert len(by) == 2 and os.getpid() not in by
    assert set(noted(notes, "ended").values()) == {2}  # once alone, once together
    assert set(threads.values()) == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert hosts == {"127.0.0.1"}


def test_a_worker_that_is_killed_loses_nothing(
    studies: list[Study], notes: Path, tmp_path: Path, processes: Callable[..., Processes]
) -> None:
    cluster = processes()
    workers = [cluster.worker(), cluster.worker()]

    def kill() -> None:
        while not noted(notes, "ended"):
            time.sleep(0.02)
        workers[0].send_signal(signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with open_engine(cluster=cluster.address) as two:
        done = run_cohort(studies[:7], CountBytes(str(notes), seconds=0.4), engine=two, out=tmp_path / "out")
    assert not done.failed and len(done.outcomes) == 7
    assert [one.details["bytes"] for one in done.outcomes] == [49, 42, 35, 28, 21, 14, 7]
    assert workers[0].wait(10) == -signal.SIGKILL
    lines = (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 7  # each outcome once


def test_stopping_leaves_nothing_at_work(studies: list[Study], notes: Path, tmp_path: Path, cluster: Processes) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled

    with open_engine(cluster=cluster.address) as one:
        with pytest.raises(Cancelled):
            run_cohort(studies, CountBytes(str(notes), seconds=0.3), engine=one, out=tmp_path / "out", progress=stop)
        time.sleep(1.5)
        assert len(noted(notes, "begun")) <= 4
        again = run_cohort(studies, CountBytes(str(notes)), engine=one, out=tmp_path / "out")
    assert len(again.failed) == 1
    assert noted(notes, "ended")["study0"] == 1


def test_a_benchmark_runs_on_the_same_workers(notes: Path, cluster: Processes) -> None:
    (worker,) = cluster.workers
    run = Squares(notes=str(notes), cluster=cluster.address)
    assert run.run() == Squares(notes=str(notes)).run() == {"1": 1, "2": 4, "3": 9, "4": 16}
    run.run(notes / "log.jsonl")
    assert {path.read_text() for path in notes.glob("*.measured")} == {str(worker.pid)}
    for path in notes.glob("*.measured"):
        path.unlink()
    assert run.run(notes / "log.jsonl")["4"] == 16 and not list(notes.glob("*.measured"))  # all was in the log


def test_nobody_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONNECT_S", 1.0)
    with (
        pytest.raises(EngineUnavailable, match=r"start one .*dask scheduler"),
        open_engine(cluster=f"tcp://127.0.0.1:{free_port()}"),
    ):
        pass


def test_a_scheduler_without_workers_is_given_up(
    studies: list[Study], notes: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "NOBODY_S", 0.5)
    monkeypatch.setattr(engine, "LOOK_S", 0.2)
    with open_engine(cluster=processes().address) as nobody, pytest.raises(EngineUnavailable, match="no worker"):
        run_cohort(studies, CountBytes(str(notes)), engine=nobody)


def test_only_those_with_a_certificate_get_in(
    studies: list[Study], notes: Path, tmp_path: Path, processes: Callable[..., Processes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "CONNECT_S", 5.0)
    tls = certificate(tmp_path)
    options = ["--tls-ca-file", tls.ca, "--tls-cert", tls.cert, "--tls-key", tls.key]
    cluster = processes(*options, scheme="tls")
    cluster.worker()
    with open_engine(cluster=cluster.address, tls=tls) as inside:
        assert len(run_cohort(studies, CountBytes(str(notes)), engine=inside).failed) == 1
    with pytest.raises(EngineUnavailable), open_engine(cluster=cluster.address, tls=certificate(tmp_path / "other")):
        pass
    with pytest.raises(ValueError, match="give --tls-ca"), open_engine(cluster=cluster.address):
        pass


def certificate(folder: Path) -> Tls:
    """A certificate that is its own authority."""
    folder.mkdir(exist_ok=True)
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return Tls(ca=str(cert), cert=str(cert), key=str(key))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "ssmsam\[cluster\]"'), open_engine(workers=2):
        pass
    with pytest.raises(ValueError, match="at least one"), open_engine(workers=0):
        pass
    with open_engine() as here:  # one process needs no package
        assert here.workers == 1


def test_a_folder_that_changed_between_runs_is_listed_anew(files: Path, notes: Path, tmp_path: Path) -> None:
    run_cohort(studies_of(files), CountBytes(str(notes)), out=tmp_path / "out")
    (files / "study7.nii.gz").write_bytes(b"now it is something")
    assert not run_cohort(studies_of(files), CountBytes(str(notes)), out=tmp_path / "out").failed
