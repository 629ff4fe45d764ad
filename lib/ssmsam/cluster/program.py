"""A program that a worker runs for a client, such as a training of the server: it ends with whoever asked for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ssmsam import __version__
from ssmsam.cluster.engine import Engine
from ssmsam.progress import POLL_S

LINES = 20
"""What of a failed program's output is told: a guess, enough for the message and where it came from."""


class ProgramFailed(RuntimeError):
    """A program on a worker ended with an error: its last lines."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A module that is run as ``python -m`` and writes its result to a file.

    Attributes:
        module: its name.
        arguments: of its command line; ``{out}`` stands for the file.
        environment: set beside the worker's own. No passwords: whoever reads the scheduler's traffic reads them.
        version: of ssmsam, which the worker has to have too.
    """

    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__


def run_elsewhere(engine: Engine, program: Program) -> str:
    """Run a program on any of an engine's workers; what it wrote.

    Raises ProgramFailed, EngineUnavailable, and RuntimeError where the worker has another version of ssmsam.
    """
    ((_, result),) = engine.run(run_program, [program])
    if isinstance(result, Exception):
        raise result
    return result


def run_program(program: Program) -> str:
    """What a worker does of :func:`run_elsewhere`. It looks now and then whether anybody still waits for the result."""
    if program.version != __version__:
        raise RuntimeError(
            f"{platform.node()} has ssmsam {__version__}, and what asked for this {program.version}: install the same"
        )
    with tempfile.TemporaryDirectory(prefix="ssmsam-") as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        line = [argument.replace("{out}", str(out)) for argument in program.arguments]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", program.module, *line],
                env={**os.environ, **program.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        try:
            while process.poll() is None and not _given_up():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            told = log.read_text(errors="replace").strip().splitlines()[-LINES:]
            raise ProgramFailed("\n".join(told) or f"{program.module} ended with {process.returncode}")
        return out.read_text() if out.exists() else ""


def _given_up() -> bool:
    """Whether this is a task of a Dask worker that nobody waits for any more."""
    try:
        from distributed.worker import get_worker, thread_state
    except ImportError:
        return False
    key = getattr(thread_state, "key", None)
    if key is None:
        return False
    task = get_worker().state.tasks.get(key)
    return task is None or task.state == "cancelled"
