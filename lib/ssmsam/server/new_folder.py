"""Whether MONAI Label made the folder of studies just now, because the path on its command line did not exist."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

_SLACK_S = 1.5
"""How far the start of a process may be off: the system counts its own start in whole seconds."""


def made_by_this_process(folder: Path) -> bool:
    """Whether an empty folder was made since this process began; it is removed then, with parents made alike.

    MONAI Label's command makes a missing folder before any app is asked, so that a typing error looks like an empty
    folder of studies.
    """
    found = _new(folder)
    while _new(folder):
        folder.rmdir()
        folder = folder.parent
    return found


def _new(folder: Path) -> bool:
    try:
        status = folder.stat()
        if any(folder.iterdir()):
            return False
    except OSError:
        return False
    return all(_began() < when <= time.time() for when in (status.st_ctime, status.st_mtime))  # none from the future


def _began() -> float:
    """When this process began, in seconds since 1970."""
    process = psutil.Process()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100) + 0.1
    except (OSError, ValueError, AttributeError):  # not Linux
        return process.create_time() + _SLACK_S
