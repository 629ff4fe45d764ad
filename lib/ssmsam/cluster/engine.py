"""Where work runs: in this process, in several of this machine, or on the workers of a Dask scheduler.

A worker also runs whole programs for a client, such as a training of the server.
"""

from __future__ import annotations

import os
import platform
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ssmsam import __version__
from ssmsam.progress import POLL_S

T = TypeVar("T")
R = TypeVar("R")

JOB_QUEUES = ("slurm", "kubernetes")
AHEAD = 2
"""Tasks that wait for each worker beside the one that it does: a guess, enough to keep it busy."""
NOBODY_S = 120.0
"""How long a scheduler may be without any worker: a guess, a queue of jobs needs a while to start them."""
LOOK_S = 2.0
"""How often that is looked at."""
CONNECT_S = 20.0
"""How long a scheduler may take to answer: a guess."""
KILLED = 3
"""Workers that may die of a task before it is given up: Dask's own default."""
LINES = 20
"""What of a failed program's output is told: a guess, enough for the message and where it came from."""


class EngineUnavailable(ConnectionError):
    """The scheduler does not answer, has no workers, or went away. What is finished is kept."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Certificates of one's own authority: scheduler, workers and clients only talk to those who have one.

    Attributes:
        ca: the authority's certificate, a PEM file.
        cert: this machine's certificate.
        key: the private key of ``cert``.
    """

    ca: str
    cert: str
    key: str


class Engine(Protocol):
    """``run`` gives what becomes of each item as it is finished, in any order: a result, or the error."""

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R | Exception]]: ...


class InProcess:
    """One after the other, here."""

    workers = 1

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R | Exception]]:
        for item in items:
            try:
                yield item, function(item)
            except Exception as error:  # of one item: the others go on
                yield item, error


class DaskEngine:
    """On Dask's workers, few tasks ahead of what they do: what is stopped leaves nothing behind."""

    def __init__(self, client: Any, *, resources: Mapping[str, float] | None = None) -> None:
        self._client, self._resources = client, resources

    @property
    def workers(self) -> int:
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    @property
    def page(self) -> str:
        """The address of Dask's own page, which shows what every worker does."""
        return str(self._client.dashboard_link)

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R | Exception]]:
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        todo = iter(items)
        at_work: dict[Any, T] = {}
        try:
            while True:
                room = max(4, (1 + AHEAD) * self._threads()) - len(at_work)
                for item in islice(todo, max(0, room)):
                    future = self._client.submit(function, item, pure=False, resources=self._resources)
                    at_work[future] = item
                    future.add_done_callback(ended.put)
                if not at_work:
                    return
                future = self._next(ended)
                yield at_work.pop(future), self._outcome(future)
        finally:
            self._client.cancel(list(at_work), force=True)

    def _threads(self) -> int:
        now = time.monotonic()
        if now - getattr(self, "_looked", -LOOK_S) >= LOOK_S:
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
            self._looked, self._known = now, sum(worker["nthreads"] for worker in workers)
        return self._known

    def _next(self, ended: queue.SimpleQueue[Any]) -> Any:
        """The next future that ends. Raises EngineUnavailable while nobody is there to do anything."""
        since = time.monotonic()
        while True:
            try:
                return ended.get(timeout=LOOK_S)
            except queue.Empty:
                if self._client.status not in ("running", "connecting"):
                    raise EngineUnavailable(_GONE) from None
                if self._threads():
                    since = time.monotonic()
                elif time.monotonic() - since > NOBODY_S:
                    raise EngineUnavailable(
                        f"the scheduler had no worker for {NOBODY_S:.0f} s: start some (`dask worker ADDRESS`), and "
                        "run this again to go on"
                    ) from None

    @staticmethod
    def _outcome(future: Any) -> Any:
        from distributed.scheduler import KilledWorker

        if future.status in ("cancelled", "lost"):
            raise EngineUnavailable(_GONE)
        if future.status == "finished":
            return future.result()
        error = future.exception()
        if isinstance(error, KilledWorker):
            return MemoryError(f"{KILLED + 1} workers died of it, most likely for want of memory")
        return error


_GONE = "the scheduler went away: what is finished is kept. Start it, and run this again to go on"


@contextmanager
def open_engine(
    *,
    workers: int = 1,
    cluster: str | None = None,
    threads: int | None = None,
    gpu: bool = False,
    tls: Tls | None = None,
    own_process: bool = False,
) -> Iterator[InProcess | DaskEngine]:
    """An engine for as long as the block lasts.

    Args:
        workers: processes; of this machine, or of ``slurm`` and ``kubernetes``. One without a cluster is this process.
        cluster: the address of a Dask scheduler (tcp://host:8786, tls://...), or "slurm" or "kubernetes", which take
            their settings from Dask's configuration files.
        threads: of torch in each process; the cores of this machine are divided evenly by default.
        gpu: give tasks only to workers that were started with ``--resources GPU=1``, one at a time each.
        tls: how to get in where the scheduler asks for certificates; else what Dask's configuration files say.
        own_process: a single worker is a process of its own too.

    Raises:
        ValueError: a package or certificates are missing.
        EngineUnavailable: nobody answers there.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least one has to do the work")
    if cluster is None and workers == 1 and not own_process:
        yield InProcess()
        return
    _require("distributed")
    if cluster is not None and cluster.startswith("tls://") and tls is None and not _configured_tls():
        raise ValueError(f"{cluster} asks for certificates: give --tls-ca, --tls-cert and --tls-key")
    from distributed import Client
    from distributed.security import Security

    with ExitStack() as stack:
        security: Any = None
        if tls is not None:
            files = {"tls_ca_file": tls.ca, "tls_client_cert": tls.cert, "tls_client_key": tls.key}
            security = Security(**files, require_encryption=True)
        if cluster is None:
            address: Any = stack.enter_context(_local(workers, threads))
        elif cluster in JOB_QUEUES:
            address = stack.enter_context(_job_queue(cluster, workers))
        else:
            address = cluster
        try:
            client = stack.enter_context(Client(address, security=security, timeout=CONNECT_S, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise EngineUnavailable(
                f"no Dask scheduler answers at {cluster}: start one (`dask scheduler --host ADDRESS`) and its workers "
                f"(`dask worker {cluster}`), or correct the address ({error})"
            ) from None
        yield DaskEngine(client, resources={"GPU": 1} if gpu else None)


@contextmanager
def _local(workers: int, threads: int | None) -> Iterator[Any]:
    """Processes of this machine, to be reached from nowhere else."""
    import dask
    from distributed import LocalCluster

    each = threads or max(1, (os.cpu_count() or 1) // workers)
    environment = {name: str(each) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,  # torch has threads of its own
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
    ):
        yield cluster


@contextmanager
def _job_queue(kind: str, workers: int) -> Iterator[Any]:
    """Workers that a queue of jobs starts, as Dask's configuration files say."""
    known = {"slurm": ("dask_jobqueue", "SLURMCluster"), "kubernetes": ("dask_kubernetes.operator", "KubeCluster")}
    module, name = known[kind]
    _require(module.partition(".")[0])
    with getattr(import_module(module), name)() as cluster:
        cluster.scale(workers)
        yield cluster


def _configured_tls() -> bool:
    import dask

    return bool(dask.config.get("distributed.comm.tls.client.cert", None))


def _require(package: str) -> None:
    if find_spec(package) is None:
        names = {"distributed": '"ssmsam[cluster]"'}
        raise ValueError(f"this needs a package more: pip install {names.get(package, package.replace('_', '-'))}")


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
