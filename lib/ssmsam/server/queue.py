"""What waits in MONAI Label's queues of background processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks import utils as stock


def drop_queued(method: str) -> list[dict[str, Any]]:
    """Take from the queue of a method ("train", "scoring", ...) all that waits in it; the tasks that were dropped.

    Stopping by itself ends the process that runs, and the next one starts at once.
    """
    executor = stock.background_executors.get(method)
    if executor is None:
        return []
    executor.shutdown(wait=False, cancel_futures=True)
    stock.background_executors.pop(method, None)  # the next task makes a new one
    dropped = [task for task in stock.tasks(method) if task["status"] == "SUBMITTED"]
    for task in dropped:
        task["status"], task["end_ts"] = "STOPPED", time.strftime("%Y-%m-%d %H:%M:%S")
    return dropped


def running(method: str) -> set[str]:
    """The models that a process of this method works on now."""
    return {str(task["request"].get("model", "")) for task in stock.tasks(method) if task["status"] == "RUNNING"}


_STATES = {"SUBMITTED": "queued", "RUNNING": "running", "DONE": "done", "ERROR": "failed", "STOPPED": "cancelled"}


def trainings(trainers: Mapping[str, TrainTask]) -> list[dict[str, Any]]:
    """The training tasks as ``GET /jobs`` lists jobs: what runs, what waits, then what ended, the newest first."""
    found = [_as_job(task, trainers.get(str(task["request"].get("model", "")))) for task in stock.tasks("train")]
    ended = [job for job in found if job["state"] not in ("queued", "running")]
    return [*(job for state in ("running", "queued") for job in found if job["state"] == state), *reversed(ended)]


def _as_job(task: Mapping[str, Any], trainer: TrainTask | None) -> dict[str, Any]:
    request, state = task["request"], _STATES.get(task["status"], "failed")
    model = str(request.get("model", ""))
    began = time.mktime(time.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S"))
    noted = trainer.stats() if trainer and state == "running" else {}
    noted = noted if noted.get("started", 0) >= began else {}  # else of the training before
    return {
        "id": task["id"], "kind": "train", "title": f"{model} is trained", "owner": str(request.get("client_id") or ""),
        "image": "", "model": model, "phase": noted.get("phase", ""), "done": noted.get("epoch", 0),
        "total": noted.get("total_epochs", 0), "eta_s": noted.get("eta_s"), "state": state, "detail": "",
    }  # fmt: skip
