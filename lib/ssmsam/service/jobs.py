"""Long pieces of work: what runs, what waits, how far it is, and how one of them is stopped."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Literal

from ssmsam.progress import Cancelled

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]

NOW, LATER = 0, 10
"""Priorities: somebody waits for it, or it is done beside. The lowest runs first."""
KEPT = 50
"""Ended jobs that are remembered, the oldest are forgotten: a guess."""


class UnknownJob(LookupError):
    """There is no job of that id, or it was forgotten."""


class Job:
    """One piece of work with its own cancel token. ``progress`` is handed to the work; safe for threads.

    ``owner`` is the client that asked for it, ``model`` the one that it is done for, ``subject`` whatever the work is
    about: two jobs with equal subjects do the same.
    """

    def __init__(
        self,
        kind: str,
        *,
        title: str = "",
        owner: str = "",
        image: str = "",
        model: str = "",
        subject: object = None,
        priority: int = LATER,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.kind, self.title, self.owner, self.image, self.model = kind, title, owner, image, model
        self.subject = subject
        self.priority = priority
        self.state: State = "queued"
        self.detail = ""
        self.result: Future[Any] = Future()
        self._token = threading.Event()
        self._lock = threading.Lock()
        self._now: tuple[str, int, int] = ("", 0, 0)
        self._began = 0.0

    def progress(self, phase: str, done: int, total: int) -> None:
        """A :data:`~ssmsam.progress.Progress`. Raises Cancelled after :meth:`cancel`."""
        with self._lock:
            if self._now[0] != phase:
                self._began = time.monotonic()
            self._now = (phase, done, total)
        if self._token.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Ask the work to stop; it does at its next step."""
        self._token.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._token.is_set()

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def eta_s(self) -> float | None:
        """Seconds that the present phase will still take; None where nothing is known of it."""
        with self._lock:
            (_, done, total), passed = self._now, time.monotonic() - self._began
        return round(passed * (total - done) / done, 1) if done and self.state == "running" else None

    @property
    def step(self) -> dict[str, Any]:
        """As JSON: phase, done, total and eta_s."""
        eta = self.eta_s
        with self._lock:
            phase, done, total = self._now
        return {"phase": phase, "done": done, "total": total, "eta_s": eta}

    def as_json(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("id", "kind", "title", "owner", "image", "model")}
        return {**told, **self.step, "state": self.state, "detail": self.detail}


class Jobs:
    """One queue. ``workers`` threads take what waits, by priority, then by age; they start with the first job.

    Work that a request does in its own thread is listed with :meth:`running`. ``kept`` ended jobs are remembered.
    """

    def __init__(self, *, workers: int = 1, kept: int = KEPT) -> None:
        self._workers, self._kept = workers, kept
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._work: dict[str, Callable[[Job], Any]] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def submit(self, job: Job, work: Callable[[Job], Any]) -> Job:
        """Queue ``work(job)``, which may set the job's ``detail``. Its result or error is in ``job.result``."""
        with self._changed:
            if self._stopping:
                raise RuntimeError("the queue was stopped")
            self._jobs[job.id], self._work[job.id] = job, work
            if len(self._threads) < self._workers:
                self._start()
            self._changed.notify()
        return job

    @contextmanager
    def running(self, job: Job) -> Iterator[Job]:
        """List a job while the caller does its work in this block. Cancelled inside is passed on."""
        with self._changed:
            self._jobs[job.id] = job
            job.state = "running"
        try:
            yield job
        except BaseException as error:
            self._end(job, "cancelled" if isinstance(error, Cancelled) else "failed", error)
            raise
        self._end(job, "done", None)

    def get(self, name: str) -> Job:
        """Raises :class:`UnknownJob`."""
        with self._changed:
            if name not in self._jobs:
                raise UnknownJob(f"there is no job {name!r}: it ended long ago, or never was; GET /jobs lists them")
            return self._jobs[name]

    def listed(self) -> list[Job]:
        """Those that run, those that wait in their order, then those that ended, the newest first."""
        with self._changed:
            jobs = list(self._jobs.values())
        running = [job for job in jobs if job.state == "running"]
        queued = sorted((job for job in jobs if job.state == "queued"), key=lambda job: job.priority)
        return [*running, *queued, *reversed([job for job in jobs if job.ended])]

    def active(self, kind: str = "", *, model: str = "") -> list[Job]:
        """Those that run or wait, of a kind and a model where given."""
        return [
            job
            for job in self.listed()
            if not job.ended and (not kind or job.kind == kind) and (not model or job.model == model)
        ]

    def cancel(self, name: str) -> Job:
        """Stop one job, and no other: one that waits ends at once. One that ended stays so. Raises UnknownJob."""
        job = self.get(name)
        job.cancel()
        with self._changed:
            waiting = job.state == "queued" and self._work.pop(name, None) is not None
        if waiting:
            self._end(job, "cancelled", Cancelled())
        return job

    def stop(self, *, timeout: float = 10.0) -> None:
        """Cancel everything and end the workers."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for job in self.active():
            self.cancel(job.id)
        for thread in self._threads:
            thread.join(timeout)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._threads.append(thread)
        thread.start()
        if len(self._threads) == 1:
            atexit.register(self.stop)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self._work))
                if self._stopping:
                    return
                job = min((self._jobs[name] for name in self._work), key=lambda one: one.priority)
                work = self._work.pop(job.id)
                job.state = "running"
            try:
                found = work(job)
            except BaseException as error:  # whatever is wrong with one job, the next one may be fine
                if not isinstance(error, Cancelled):
                    job.detail = job.detail or str(error)
                    logger.warning("A job failed: %s", job.title or job.kind, exc_info=error)
                self._end(job, "cancelled" if isinstance(error, Cancelled) else "failed", error)
            else:
                self._end(job, "done", None, found)

    def _end(self, job: Job, state: State, error: BaseException | None, found: Any = None) -> None:
        with self._changed:
            job.state = state
            self._jobs[job.id] = self._jobs.pop(job.id, job)  # the newest is the last
            for old in [one.id for one in self._jobs.values() if one.ended][: -self._kept or None]:
                del self._jobs[old]
        if error is None:
            job.result.set_result(found)
        else:
            job.result.set_exception(error)
