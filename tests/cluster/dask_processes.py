"""A scheduler and workers as processes of their own, as somebody starts them by hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Processes:
    """A scheduler and its workers, as somebody starts them by hand."""

    def __init__(self, *options: str, scheme: str = "tcp", port: int = 0) -> None:
        self.address = f"{scheme}://127.0.0.1:{port or free_port()}"
        self._options = options
        self._running = [self._start("scheduler", "--host", self.address, "--no-dashboard")]
        self.workers: list[subprocess.Popen[bytes]] = []
        wait(self._listens)

    def _listens(self) -> bool:
        """Whether the scheduler is there: on a busy machine that takes longer than clients wait."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.address.rpartition(":")[2]))) == 0

    def worker(self) -> subprocess.Popen[bytes]:
        """One more, without a process that starts it again."""
        process = self._start("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        self._running.append(process)
        self.workers.append(process)
        return process

    def stop(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait(20)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:], *self._options]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait(condition: Callable[[], Any], *, patience_s: float = 60) -> None:
    """Until it holds. Fails when that takes too long."""
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
