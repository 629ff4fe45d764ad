"""Work that tests hand to engines. Workers import it by name, as they do with the real one."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmsam.cluster.studies import Study
from ssmsam.dicom.web import StoreUnavailable
from ssmsam.progress import Progress, silent
from ssmsam_research.run import Run


@dataclass(frozen=True)
class CountBytes:
    """How large a file is. Notes each attempt in ``notes``; waits ``seconds`` first."""

    notes: str
    seconds: float = 0.0
    version: int = 1
    name = "count"

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"work": self.name, "version": self.version}

    def __call__(self, study: Study, *, progress: Progress = silent) -> dict[str, Any]:
        progress("bytes", 0, 1)
        note(self.notes, study, "begun")
        time.sleep(self.seconds)
        size = Path(study.source).stat().st_size
        if not size:
            raise ValueError(f"{study.name} is empty: write it again")
        note(self.notes, study, "ended")
        return {"bytes": size, "pid": os.getpid()}


@dataclass(frozen=True)
class Away(CountBytes):
    """The archive answers when the file ``notes``/back is there."""

    def __call__(self, study: Study, *, progress: Progress = silent) -> dict[str, Any]:
        note(self.notes, study, "asked")
        if not (Path(self.notes) / "back").exists():
            raise StoreUnavailable("the archive does not answer")
        return {"bytes": Path(study.source).stat().st_size}


def note(folder: str, study: Study, what: str) -> None:
    with (Path(folder) / f"{study.name}.{what}").open("a") as file:
        file.write(f"{os.getpid()}\n")


def noted(folder: Path, what: str) -> dict[str, int]:
    """How often for each study."""
    return {path.stem: len(path.read_text().splitlines()) for path in folder.glob(f"*.{what}")}


@dataclass(frozen=True, kw_only=True)
class Squares(Run[int]):
    """A measurement of numbers."""

    notes: str

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"protocol": "squares"}

    def units(self) -> Sequence[int]:
        return [1, 2, 3, 4]

    def measure(self, unit: int, finished: Collection[str]) -> Iterator[tuple[str, Any]]:
        if str(unit) not in finished:
            (Path(self.notes) / f"{unit}.measured").write_text(str(os.getpid()))
            yield str(unit), unit**2

    def result(self, pieces: Mapping[str, Any]) -> dict[str, Any]:
        return {name: pieces[name] for name in sorted(pieces)}
