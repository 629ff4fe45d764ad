"""The real server, started by MONAI Label's own command in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import requests

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0
COMMAND = "monailabel.main"

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["monai"])
"""A process that has imported MONAI, which takes four fifths of a start, and is copied for each server. It has imported
nothing that reads the environment of a server: neither MONAI Label nor anything of ours."""


def start_command(*, studies: Path | str, port: int, conf: Mapping[str, str]) -> list[str]:
    settings = [word for key, value in conf.items() for word in ("--conf", key, value)]
    return [
        sys.executable, "-m", COMMAND, "start_server", "--app", "ssmsam_app", "--studies", str(studies),
        "--host", "127.0.0.1", "--port", str(port), *settings,
    ]  # fmt: skip


class Process(Protocol):
    """What is asked of the server's process, however it was begun."""

    @property
    def pid(self) -> int: ...
    def wait(self, seconds: float) -> int: ...
    def poll(self) -> int | None: ...


def begun(command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> Process:
    """As a user begins it: with a new interpreter."""
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


class Copied:
    """The same command in a copy of a process that has imported MONAI already."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self._process = WARM.Process(target=_run, args=(list(command), dict(environment), log))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(COMMAND, seconds)
        return self._process.exitcode


def _run(command: list[str], environment: dict[str, str], log: Path) -> None:
    """In the copy: become what ``python -m monailabel.main`` is with this environment."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    tempfile.tempdir = None  # importing has looked it up
    sys.path[:] = [str(ROOT), *(one for one in sys.path if not Path(one).is_relative_to(ROOT / "tests"))]
    sys.argv[1:] = command[command.index(COMMAND) + 1 :]
    runpy.run_module(COMMAND, run_name="__main__", alter_sys=True)


def clean_environment(home: Path) -> dict[str, str]:
    """A home of its own, one thread, and a network that leads nowhere."""
    closed = "http://127.0.0.1:9"
    return {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
        "SSMSAM_CACHE": str(home / "store"),
        "MONAI_LABEL_SESSION_PATH": str(home / "sessions"),
        "OMP_NUM_THREADS": "1",
        "http_proxy": closed,
        "https_proxy": closed,
        "no_proxy": "127.0.0.1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One run of the server on a folder of studies. ``home`` is everything else it may write to.

    ``cold``: begin it with a new interpreter, which takes ten seconds more of a processor.
    """

    def __init__(
        self,
        *,
        studies: Path | str,
        home: Path,
        conf: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        cold: bool = False,
    ) -> None:
        self.studies, self.home = studies, home
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / f"server-{self.port}.log"
        command = start_command(studies=studies, port=self.port, conf=conf or {})
        begin = begun if cold else Copied
        self._process: Process = begin(
            command, environment={**clean_environment(home), **(environment or {})}, log=self.log
        )

    @property
    def pid(self) -> int:
        """Of its main process."""
        return self._process.pid

    def wait_until_it_answers(self) -> Server:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended with {self._process.poll()}:\n{self.said()[-4000:]}")
            try:
                self.info()
                return self
            except requests.ConnectionError:
                time.sleep(0.2)
        raise AssertionError(f"the server did not answer in {START_SECONDS} s:\n{self.said()[-4000:]}")

    def wait_until_warm(self) -> Server:
        self.wait_for(lambda info: info["ssmsam"]["warm"])
        return self

    def wait_for(self, condition: Any, *, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition(self.info()):
            assert time.monotonic() < end, f"waited {seconds} s in vain; the server says {self.info()['ssmsam']}"
            time.sleep(0.1)

    def info(self) -> dict[str, Any]:
        return requests.get(f"{self.url}/info/", timeout=30).json()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ended_with(self, *, seconds: float = START_SECONDS) -> int:
        """The exit status, once the process ends by itself."""
        return self._process.wait(seconds)

    def stop(self) -> int:
        """End it the polite way; returns the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop:\n{self.said()[-2000:]}") from None

    def kill(self) -> None:
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait(30)
