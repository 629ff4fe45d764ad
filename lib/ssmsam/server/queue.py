"""What waits in MONAI Label's queues of background processes."""

from __future__ import annotations

import time
from typing import Any

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
