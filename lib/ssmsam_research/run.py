"""One way to run every protocol: units of work side by side, what is finished in a log, everything in one record."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from ssmsam.cluster.engine import open_engine
from ssmsam.progress import Progress, silent
from ssmsam.report import RunLog, run_manifest

U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class Run(ABC, Generic[U]):
    """A protocol, methods and data, ``jobs`` units of work at a time with ``threads`` each.

    A unit, mostly a case, is read once and gives pieces: what the log keeps on its own, so that a run that was stopped
    goes on where it was, and a method that is added later is measured alone.
    """

    jobs: int = 1
    threads: int = 1
    cluster: str | None = None
    """A Dask scheduler whose workers see the data and the weights under the same paths; they take the place of
    ``jobs``."""
    unit: ClassVar[str] = "cases"
    """What progress calls the units of work."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything that changes the pieces but for their names and the code, ready for JSON."""

    @abstractmethod
    def units(self) -> Sequence[U]:
        """What there is to do."""

    @abstractmethod
    def measure(self, unit: U, finished: Collection[str]) -> Iterator[tuple[str, Any]]:
        """The pieces of a unit that are not ``finished``: name and content, ready for JSON."""

    @abstractmethod
    def result(self, pieces: Mapping[str, Any]) -> dict[str, Any]:
        """The record of everything that was measured. Raises ValueError when there was nothing to measure."""

    @property
    def key(self) -> str:
        """Changes with everything that changes the pieces, so that a resumed run never mixes two."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def run(self, log_file: Path | None = None, *, progress: Progress = silent) -> dict[str, Any]:
        """Measure what ``log_file`` does not hold yet, and put the result together."""
        log = RunLog(log_file, run=self.key) if log_file else None
        pieces: dict[str, Any] = log.read() if log else {}
        units = self.units()
        progress(self.unit, 0, len(units))
        done = 0
        for piece in self._measured(units, frozenset(pieces)):
            if piece is None:
                done += 1
                progress(self.unit, done, len(units))
                continue
            pieces[piece[0]] = piece[1]
            if log:
                log.append(*piece)
        return self.result(pieces)

    def _measured(self, units: Sequence[U], finished: frozenset[str]) -> Iterator[tuple[str, Any] | None]:
        """All pieces, and None after each unit."""
        if self.cluster:
            with open_engine(cluster=self.cluster, threads=self.threads) as engine:
                for _, found in engine.run(partial(_listed, self, finished=finished), units):
                    if isinstance(found, Exception):
                        raise found
                    yield from found
                    yield None
            return
        if self.jobs == 1 or len(units) < 2:
            for unit in units:
                yield from self.measure(unit, finished)
                yield None
            return
        with ProcessPoolExecutor(min(self.jobs, len(units)), mp_context=get_context("spawn")) as processes:
            running = [processes.submit(_listed, self, unit, finished) for unit in units]
            for future in as_completed(running):
                yield from future.result()
                yield None

    def record(
        self,
        *,
        protocol: str,
        method: str,
        settings: Mapping[str, Any],
        data: Mapping[str, Any],
        weights: Mapping[str, str],
        device: str = "cpu",
        **body: Any,
    ) -> dict[str, Any]:
        """The shape that all records share. ``weights`` are sha256 by name, those of the encoder first."""
        encoder = next(iter(weights), None)
        settings = {**settings, "jobs": self.jobs, "threads": self.threads}
        return {
            "protocol": protocol,
            "method": method,
            "encoder": encoder,
            "weights_sha256": weights.get(encoder) if encoder else None,
            "settings": settings,
            **body,
            "manifest": run_manifest(protocol=protocol, data=data, weights=weights, device=device, settings=settings),
        }


def _listed(run: Run[U], unit: U, finished: frozenset[str]) -> list[tuple[str, Any]]:
    return list(run.measure(unit, finished))
