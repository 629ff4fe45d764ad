"""What the machine offers: device, threads, memory."""

from __future__ import annotations

import ctypes
import logging
import os
import platform

import psutil
import torch

from ssmsam.service.errors import ConfigurationError

logger = logging.getLogger(__name__)

ARENAS = 2
"""How many pools the C library's allocator may keep memory in; by itself it makes up to eight for each core, and what
is freed in one is of no use to a thread of another. A guess: in the demo on ``small`` 1.3 of 2.8 GB were in such pools,
but how much less is used with two was not measured."""
_M_ARENA_MAX = -8
""":manpage:`mallopt(3)`."""


def choose_device(name: str) -> str:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Raises ConfigurationError when it is missing."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        wanted = int(name.partition(":")[2] or 0)
        if wanted >= torch.cuda.device_count():
            raise ConfigurationError(
                f"--conf device {name}: torch sees {torch.cuda.device_count()} GPUs here; use cpu or auto"
            )
    return name


def choose_threads(wanted: int) -> int:
    """``wanted`` if above 0, else what ``OMP_NUM_THREADS`` says, else one thread per physical core we may use.

    Two threads on the two halves of one core slow a matrix product down rather than up.
    """
    if wanted > 0:
        return wanted
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def use_threads(wanted: int) -> int:
    """Set torch's threads per computation; returns their number."""
    threads = choose_threads(wanted)
    torch.set_num_threads(threads)
    return threads


NICENESS = 10
"""Of a process that trains or works through many images while people click: a tenth of the processor where they need
it, all of it where they do not. A guess."""


def give_way() -> None:
    """Let other processes have the processor first. Does nothing where the system knows no such thing."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)


def memory_in_use() -> int:
    """What this process holds of the machine's memory, in bytes."""
    return int(psutil.Process().memory_info().rss)


def limit_arenas() -> None:
    """Let all threads share a few pools of memory. Does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc" and not os.environ.get("MALLOC_ARENA_MAX"):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
