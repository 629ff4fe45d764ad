"""Protocol "scaling": what further workers are worth, what a task costs beside its work, where one scheduler ends."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ssmsam.cluster import EmbedStudy, Model, Study, open_engine, run_cohort, studies_of
from ssmsam.cluster.engine import DaskEngine
from ssmsam.progress import Progress, silent
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


@dataclass(frozen=True)
class ScalingProtocol:
    """What is measured.

    Attributes:
        workers: how many processes share the embedding of all studies, each with one thread of torch.
        rounds: how often; the numbers of workers take turns.
        tasks: empty ones, for what a task costs.
        simulated: numbers of workers that only sleep.
        task_s: how long a sleeping task takes. Real ones take longer, so that one scheduler serves more workers.
        each: sleeping tasks for each worker.
    """

    workers: tuple[int, ...] = (1, 2)
    rounds: int = 2
    tasks: int = 300
    simulated: tuple[int, ...] = (1, 4, 16, 64, 128)
    task_s: float = 1.0
    each: int = 6


def measure_scaling(
    studies: Sequence[Study], model: Model, folder: Path, protocol: ScalingProtocol, *, progress: Progress = silent
) -> dict[str, Any]:
    """Seconds, studies a second, and efficiency: the share of ``n`` times one worker's rate that ``n`` workers reach.

    ``folder`` takes embedding stores, a new one for each turn.
    """
    seconds: dict[int, list[float]] = {count: [] for count in protocol.workers}
    for turn in range(protocol.rounds):
        for count in protocol.workers:
            progress("embedding", len(seconds) * turn + protocol.workers.index(count), len(seconds) * protocol.rounds)
            store = folder / f"{turn}-{count}"
            seconds[count].append(_embedding(studies, replace(model, store=str(store), threads=1), count))
    first = protocol.workers[0]
    alone = median(seconds[first]) * first
    embedding = {
        str(count): {
            "seconds": [round(one, 2) for one in times],
            "studies_per_minute": round(60 * len(studies) / median(times), 2),
            "efficiency": round(alone / (count * median(times)), 3),
        }
        for count, times in seconds.items()
    }
    progress("tasks", 0, 1)
    simulated = {}
    for number, count in enumerate(protocol.simulated):
        progress("simulation", number, len(protocol.simulated))
        simulated[str(count)] = _simulation(count, protocol)
    return {"embedding": embedding, "overhead_ms": _overhead(protocol.tasks), "simulation": simulated}


def _embedding(studies: Sequence[Study], model: Model, count: int) -> float:
    """Seconds that ``count`` processes take, the models loaded."""
    with tempfile.TemporaryDirectory() as folder, open_engine(workers=count, threads=1, own_process=True) as engine:
        for number in range(2 * count):  # small ones, for which the models are loaded
            noise = np.random.default_rng(number).normal(size=(1, 64, 64)).astype(np.float32)
            write_volume(Volume(noise, np.eye(4)), Path(folder) / f"{number}.nii.gz")
        run_cohort(studies_of(folder), EmbedStudy(model=model), engine=engine)
        started = time.perf_counter()
        failed = run_cohort(studies, EmbedStudy(model=model), engine=engine).failed
        taken = time.perf_counter() - started
    if failed:
        raise ValueError(f"{failed[0].study}: {failed[0].reason}")
    return taken


def _overhead(tasks: int) -> float:
    """Milliseconds from one empty task to the next, on two processes."""
    with open_engine(workers=2) as engine:
        list(engine.run(_nothing, range(20)))
        started = time.perf_counter()
        list(engine.run(_nothing, range(tasks)))
        return round(1000 * (time.perf_counter() - started) / tasks, 2)


def _simulation(count: int, protocol: ScalingProtocol) -> dict[str, Any]:
    """Workers of one process that sleep, on a real scheduler: what it can keep busy."""
    with _sleepers(count) as engine:
        tasks = count * protocol.each
        started = time.perf_counter()
        list(engine.run(_sleep, [protocol.task_s] * tasks))
        taken = time.perf_counter() - started
    return {
        "tasks": tasks,
        "seconds": round(taken, 2),
        "efficiency": round(protocol.task_s * protocol.each / taken, 3),
    }


@contextmanager
def _sleepers(count: int) -> Iterator[DaskEngine]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=count, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield DaskEngine(client)


def _nothing(number: int) -> int:
    return number


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
