"""Work that MONAI Label does in processes of its own (training, batches, scores), as jobs of the one queue."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import psutil
from monailabel.utils.async_tasks import utils as stock

from ssmsam.progress import POLL_S, Cancelled
from ssmsam.service.jobs import Job, Jobs, State, UnknownJob

TRAIN, BATCH, SCORE = "train", "batch_infer", "scoring"
"""The kinds of these jobs, which are the names of MONAI Label's methods."""
_TITLES = {TRAIN: "{} is trained", BATCH: "{} on many images", SCORE: "labels are scored by {}"}
_STOCK_STATES = {"done": "DONE", "failed": "ERROR", "cancelled": "STOPPED"}
_COUNTED = re.compile(r"=> (\d+) / (\d+)$")
"""How MONAI Label's batch inference logs that one more image is done."""
_TIME = "%Y-%m-%d %H:%M:%S"
KEPT = 50
"""Ended tasks of a method that MONAI Label's own routes still know: a guess."""


class ProcessFailed(RuntimeError):
    """The process ended with an error. The message is the last line that it wrote."""


class ProcessJob(Job):
    """A job whose work is a process, and at the same time a task of MONAI Label, whose routes tell of it.

    ``measure`` says how far a process is: ``phase``, ``epoch`` of ``total_epochs``, ``eta_s``, and when it ``started``.
    """

    def __init__(
        self,
        method: str,
        request: Mapping[str, Any],
        *,
        measure: Callable[[], Mapping[str, Any]] = dict,
        owner: str = "",
    ) -> None:
        model = str(request.get("model") or request.get("method") or "")
        super().__init__(method, title=_TITLES[method].format(model), owner=owner, model=model)
        self.id = str(uuid.uuid4())
        self.task: dict[str, Any] = {
            "id": self.id, "status": "SUBMITTED", "request": dict(request), "start_ts": time.strftime(_TIME),
        }  # fmt: skip
        self._measure, self._begun = measure, 0.0

    @property
    def step(self) -> dict[str, Any]:
        if self.state != "running":
            return {"phase": "", "done": 0, "total": 0, "eta_s": None}
        if self.kind == BATCH:
            return self._counted()
        noted = self._measure()
        noted = noted if noted.get("started", 0) >= self._begun else {}  # else of the one before
        told = {"done": noted.get("epoch", 0), "total": noted.get("total_epochs", 0)}
        return {"phase": noted.get("phase", ""), **told, "eta_s": noted.get("eta_s")}

    def run(self, job: Job) -> None:
        """The work: the process from its start to its end. Raises Cancelled and ProcessFailed."""
        self._begun = time.time()
        over = threading.Event()
        threading.Thread(target=self._kill_when_cancelled, args=(over,), name="jobs-kill", daemon=True).start()
        try:
            stock._task_func(self.task, self.kind)
        finally:
            over.set()
        if self.cancelled or self.task["status"] == "STOPPED":  # the latter by MONAI Label's own routes
            raise Cancelled
        if self.task["status"] != "DONE":
            lines = [line for line in self.task.get("details", ()) if line.strip()]
            raise ProcessFailed(lines[-1] if lines else "its process ended without a word; the server's log holds more")

    def end(self, state: State) -> None:
        super().end(state)
        self.task["status"] = _STOCK_STATES[state]
        self.task.setdefault("end_ts", time.strftime(_TIME))

    def _kill_when_cancelled(self, over: threading.Event) -> None:
        while not over.wait(POLL_S):
            if self.cancelled and self.id in stock.processes(self.kind):
                with suppress(psutil.NoSuchProcess):  # it has just ended by itself
                    stock.stop_background_task(self.kind)
                return

    def _counted(self) -> dict[str, Any]:
        found = [_COUNTED.search(line) for line in list(self.task.get("details", ()))]
        counts = [(int(one[1]), int(one[2])) for one in found if one]
        done, total = max(counts, default=(0, 0))
        eta = (time.time() - self._begun) * (total - done) / done if done else None
        return {"phase": "segment", "done": done, "total": total, "eta_s": None if eta is None else round(eta, 1)}


def submit(jobs: Jobs, job: ProcessJob) -> dict[str, Any]:
    """Queue it, and let MONAI Label's routes know of it; its task."""
    tasks = stock.background_tasks.setdefault(job.kind, [])
    stock.background_processes.setdefault(job.kind, {})
    ended = [task for task in tasks if task["status"] not in ("SUBMITTED", "RUNNING")]
    for old in ended[: max(0, len(ended) - KEPT)]:
        tasks.remove(old)
    tasks.append(job.task)
    jobs.submit(job, job.run)
    return job.task


def stop(jobs: Jobs, method: str) -> list[dict[str, Any]]:
    """End what runs of a method and all that waits; their tasks, the running one first."""
    stopped = [job for job in jobs.active(method) if isinstance(job, ProcessJob)]
    for job in reversed(stopped):  # what waits first: it would begin as soon as the one at work ends
        with suppress(UnknownJob):
            jobs.cancel(job.id)
    for job in stopped:
        with suppress(Exception):
            job.result.result(timeout=_STOP_S)
    return [job.task for job in stopped]


_STOP_S = 10.0
"""How long a process that was killed may take to be gone: a guess."""


def running(jobs: Iterable[Job]) -> set[str]:
    """The models that a process works on now."""
    return {job.model for job in jobs if isinstance(job, ProcessJob) and job.state == "running"}
