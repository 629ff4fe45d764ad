"""The real server, started by MONAI Label's own command in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0


def start_command(*, studies: Path | str, port: int, conf: dict[str, str]) -> list[str]:
    settings = [word for key, value in conf.items() for word in ("--conf", key, value)]
    return [
        sys.executable, "-m", "monailabel.main", "start_server",
        "--app", "ssmsam_app", "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), *settings,
    ]  # fmt: skip


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
    """One run of the server on a folder of studies. ``home`` is everything else it may write to."""

    def __init__(
        self,
        *,
        studies: Path | str,
        home: Path,
        conf: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.studies, self.home = studies, home
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / f"server-{self.port}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                start_command(studies=studies, port=self.port, conf=conf or {}),
                cwd=ROOT, env={**clean_environment(home), **(environment or {})}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of its main process."""
        return self._process.pid

    def wait_until_it_answers(self) -> Server:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended with {self._process.returncode}:\n{self.said()[-4000:]}")
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
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop:\n{self.said()[-2000:]}") from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)
