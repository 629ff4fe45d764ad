"""Damage to files, the same for the same seed, and what came of reading them."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssmsam.volume.errors import UnreadableVolume

HEADER = 600
"""Bytes at the start of a file that are damaged more often than others."""


@dataclass
class Outcome:
    """How often a file was read all the same or refused. ``escaped`` lists other errors than the one that may come."""

    read: int = 0
    refused: int = 0
    escaped: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    grown_mib: float = 0.0


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bytes, extreme numbers, odd characters in text, pieces lost, doubled or swapped, an end."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not found:
            break
        _CHANGES[int(rng.integers(len(_CHANGES)))](found, rng)
    return bytes(found)


def damaged_inside(data: bytes, rng: np.random.Generator) -> bytes:
    """A gzip file damaged outside or, as often, inside."""
    return damaged(data, rng) if rng.random() < 0.5 else gzip.compress(damaged(gzip.decompress(data), rng), 1)


def fuzz(
    files: Mapping[Path, bytes],
    read: Callable[[], object],
    *,
    count: int,
    seed: int = 0,
    damage: Callable[[bytes, np.random.Generator], bytes] = damaged,
) -> Outcome:
    """Damage one of ``files`` (path -> sound contents) ``count`` times, read, and put it back."""
    outcome, paths = Outcome(), list(files)
    with peak_memory() as grown:
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            path = paths[int(rng.integers(len(paths)))]
            path.write_bytes(damage(files[path], rng))
            start = time.process_time()
            try:
                read()
                outcome.read += 1
            except UnreadableVolume:
                outcome.refused += 1
            except Exception as error:
                outcome.escaped.append(f"{number}: {type(error).__name__}: {error}")
            outcome.slowest_s = max(outcome.slowest_s, time.process_time() - start)
            path.write_bytes(files[path])
    outcome.grown_mib = grown[0]
    return outcome


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """MiB by which the process grew inside, at the worst moment: appended to the list when the block ends."""
    found: list[float] = []
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak_mib()
    yield found
    found.append(_peak_mib() - before)


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def _somewhere(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(min(len(data), HEADER) if rng.random() < 0.6 else len(data)))


def _set_byte(data: bytearray, rng: np.random.Generator) -> None:
    data[_somewhere(data, rng)] = int(rng.integers(256))


def _set_number(data: bytearray, rng: np.random.Generator) -> None:
    at, size = _somewhere(data, rng), int(rng.choice([2, 4, 8]))
    value = [b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x80", rng.bytes(8)][int(rng.integers(5))]
    data[at : at + size] = value[:size]


def _set_text(data: bytearray, rng: np.random.Generator) -> None:
    """A digit or a point becomes another character: decimal commas, signs, exponents."""
    places = [n for n, byte in enumerate(data[:4000]) if chr(byte) in "0123456789.\\"]
    if places:
        data[int(rng.choice(places))] = int(rng.choice(list(b"0189,.-e \\xN")))


def _lose(data: bytearray, rng: np.random.Generator) -> None:
    at = _somewhere(data, rng)
    del data[at : at + int(rng.integers(1, 40))]


def _double(data: bytearray, rng: np.random.Generator) -> None:
    at = _somewhere(data, rng)
    data[at:at] = data[at : at + int(rng.integers(1, 400))]


def _swap(data: bytearray, rng: np.random.Generator) -> None:
    a, b, size = _somewhere(data, rng), _somewhere(data, rng), int(rng.integers(1, 16))
    one, other = bytes(data[a : a + size]), bytes(data[b : b + size])
    data[a : a + len(one)], data[b : b + len(other)] = other, one


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


_CHANGES = (_set_byte, _set_byte, _set_number, _set_number, _set_text, _set_text, _lose, _double, _swap, _cut)
