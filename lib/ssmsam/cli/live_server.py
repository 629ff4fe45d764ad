"""A real server in its own process, started by MONAI Label's stock command, for the demo and for timings."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

LOOPBACK = "127.0.0.1"


class ServerFailed(RuntimeError):
    """The server ended, or did not answer in time. The message holds the end of what it printed."""


@dataclass(frozen=True)
class LiveServer:
    """A server that answers. ``start_s`` is the time from the command to the first answer of ``/info/``."""

    url: str
    pid: int
    start_s: float
    log: Path

    def memory_mb(self) -> dict[str, float]:
        """Resident memory of the server's processes now, and the peak of the main one (Linux only), in MB."""
        main, now = psutil.Process(self.pid), 0.0
        for process in (main, *main.children(recursive=True)):
            with suppress(psutil.Error):  # it ended meanwhile
                now += process.memory_info().rss / 2**20
        status = Path(f"/proc/{self.pid}/status")
        peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
        return {"now": now, "peak": int(peak[1]) / 1024 if peak else 0.0}


@contextmanager
def live_server(
    *,
    app: Path,
    studies: Path,
    port: int | None = None,
    conf: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
) -> Iterator[LiveServer]:
    """Run ``monailabel start_server`` on ``studies`` until the block ends, on a free port if none is given.

    ``conf`` becomes ``--conf KEY VALUE``. The server's own output goes to a temporary file that is removed at the
    end. Raises :class:`ServerFailed` when it does not answer within ``timeout_s`` seconds.
    """
    port = port or free_port()
    places = ["--app", str(app.absolute()), "--studies", str(studies.absolute())]  # it runs in another folder
    settings = [part for key, value in (conf or {}).items() for part in ("--conf", key, value)]
    options = [*places, "--host", LOOPBACK, "--port", str(port), *settings]
    beside = str(Path(sys.executable).parent)  # tools that stand beside this interpreter come first
    path = beside + os.pathsep + os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory(prefix="ssmsam-server-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "monailabel.main", "start_server", *options],
                cwd=folder,  # an empty folder: nothing near it can be taken for a study
                env={**os.environ, "PATH": path, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            url = f"http://{LOOPBACK}:{port}"
            if not answers(process, f"{url}/info/", timeout_s):
                ended = process.poll()
                how = f"did not answer within {timeout_s:.0f} s" if ended is None else f"ended with status {ended}"
                raise ServerFailed(f"the server {how}:\n{last_lines(log)}")
            yield LiveServer(url=url, pid=process.pid, start_s=time.perf_counter() - started, log=log)
        finally:
            end(process)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def answers(
    process: subprocess.Popen[bytes], url: str, timeout_s: float, *, statuses: tuple[int, ...] = (200,)
) -> bool:
    """Wait until a process answers at ``url`` with one of these statuses; False where it ended, or did not in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and process.poll() is None:
        with suppress(requests.RequestException):  # not listening yet: that is what the loop waits for
            if requests.get(url, timeout=5).status_code in statuses:
                return True
        time.sleep(0.1)
    return False


def is_used(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and see to it."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_lines(log: Path, lines: int = 30) -> str:
    """The end of what a process printed."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
