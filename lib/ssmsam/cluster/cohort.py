"""A run over a cohort: what is finished stays, what fails is said with its reason, and a table at the end."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ssmsam import __version__
from ssmsam.cluster.engine import Engine, InProcess
from ssmsam.cluster.studies import Study
from ssmsam.cluster.work import Work
from ssmsam.dicom.web import StoreUnavailable
from ssmsam.embeddings.object_store import StoreAway
from ssmsam.files import whole_file
from ssmsam.progress import Cancelled, Progress, silent
from ssmsam.report import RunLog

TRIES, WAIT_S = 3, 2.0
"""How often a study is tried where an archive or a store does not answer, and the first wait between; each further one
is four times as long. Guesses: a restart of a store takes some ten seconds."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one study.

    Attributes:
        study: its name.
        state: "done" or "failed".
        reason: why it failed.
        seconds: that it took.
        worker: the machine and process that did it.
        details: what the work says of it, ready for JSON.
    """

    study: str
    state: Literal["done", "failed"]
    reason: str = ""
    seconds: float = 0.0
    worker: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """For a table: one row, or one for each label."""
        first = {"study": self.study, "state": self.state, "reason": self.reason, "seconds": self.seconds}
        plain = {name: value for name, value in self.details.items() if name != "labels"}
        labels = self.details.get("labels") or {"": {}}
        named = [({"label": label} if label else {}) | _flat(values) for label, values in labels.items()]
        return [{**first, **plain, **one} for one in named]


@dataclass(frozen=True)
class Cohort:
    """What became of all studies, in their order."""

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.state == "failed"]

    @property
    def count(self) -> str:
        """How many of them are done, as in "3 of 4"."""
        return f"{len(self.outcomes) - len(self.failed)} of {len(self.outcomes)}"

    def write(self, folder: Path) -> list[Path]:
        """``studies.csv``, and ``studies.parquet`` where pyarrow is installed; the files."""
        rows = [row for outcome in self.outcomes for row in outcome.rows()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with whole_file(folder / "studies.csv") as partial_file, partial_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        written = [folder / "studies.csv"]
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            return written
        table = pyarrow.Table.from_pydict({name: [row.get(name) for row in rows] for name in columns})
        with whole_file(folder / "studies.parquet") as partial_file:
            pyarrow.parquet.write_table(table, partial_file)
        return [*written, folder / "studies.parquet"]


def run_cohort(
    studies: Sequence[Study],
    work: Work,
    *,
    engine: Engine | None = None,
    out: Path | None = None,
    progress: Progress = silent,
) -> Cohort:
    """Do the work on every study.

    Args:
        studies: see :func:`~ssmsam.cluster.studies.studies_of`.
        work: :class:`EmbedStudy`, :class:`SegmentStudy`, :class:`ScoreStudy`, or another of that kind.
        engine: where; this process by default.
        out: a folder for the outcomes as they come (``outcomes.jsonl``) and the table at the end. What is done there
            is not done again unless the study or the work changed; what failed is tried again.
        progress: called as ``progress("studies", done, total)``. Raise Cancelled in it to stop; nothing is lost.

    Raises:
        ValueError: another run works in ``out``.
        EngineUnavailable: the workers are gone.
    """
    engine = engine or InProcess()
    found: dict[str, Outcome] = {}
    with _alone(out):
        log = RunLog(out / "outcomes.jsonl", run=_key(work.identity)) if out else None
        known = {name: Outcome(**content) for name, content in (log.read() if log else {}).items()}
        keys = {study.name: _key([study.source, study.version, study.name]) for study in studies}
        for study in studies:
            before = known.get(keys[study.name])
            if before and before.state == "done":
                found[study.name] = before
        left = [study for study in studies if study.name not in found]
        progress("studies", len(found), len(studies))
        task = partial(carry_out, work=work, version=__version__)
        if isinstance(engine, InProcess):
            task = partial(task, progress=progress)  # each study's own too; from elsewhere only its end is heard
        for study, result in engine.run(task, left):
            if not isinstance(result, Outcome):
                result = Outcome(study=study.name, state="failed", reason=_sentence(result))
            found[study.name] = result
            if log:
                log.append(keys[study.name], asdict(result))
            progress("studies", len(found), len(studies))
        cohort = Cohort(tuple(found[study.name] for study in studies))
        if out:
            cohort.write(out)
    return cohort


def carry_out(study: Study, *, work: Work, version: str, progress: Progress = silent) -> Outcome:
    """The work on one study, wherever this runs. Every error becomes a reason; where a store is away it is waited for.

    Raises Cancelled.
    """
    worker = f"{platform.node()}:{os.getpid()}"
    started = time.perf_counter()

    def outcome(state: Literal["done", "failed"], **more: Any) -> Outcome:
        seconds = round(time.perf_counter() - started, 3)
        return Outcome(study=study.name, state=state, seconds=seconds, worker=worker, **more)

    if version != __version__:
        told = f"worker {worker} has ssmsam {__version__}, the run was begun by {version}: install the same"
        return outcome("failed", reason=told)
    for attempt in range(TRIES):
        try:
            return outcome("done", details=work(study, progress=progress))
        except Cancelled:
            raise
        except (StoreUnavailable, StoreAway, ConnectionError) as error:
            if attempt == TRIES - 1:
                return outcome("failed", reason=_sentence(error))
            time.sleep(WAIT_S * 4**attempt)
        except Exception as error:  # whatever is wrong with one study, the next one may be fine
            return outcome("failed", reason=_sentence(error))
    raise AssertionError("unreachable")


@contextmanager
def _alone(out: Path | None) -> Iterator[None]:
    if out is None:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".running", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another run works in {out}: wait for it, or choose another folder") from None


def _key(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {text}"


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
