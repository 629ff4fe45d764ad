"""Long pieces of work: what runs, what waits, how far it is, and how one of them is stopped."""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from ssmsam.progress import Cancelled, CancelToken, Turns, cancellable, stop_if_cancelled
from ssmsam.service.errors import shown

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]

KEPT = 50
"""Ended jobs that are remembered, the oldest are forgotten: a guess."""


_account: ContextVar[str] = ContextVar("ssmsam_account", default="")


def act_for(account: str) -> None:
    """The jobs that are made from here on in this context, such as that of a request, are those of an account."""
    _account.set(account)


def account() -> str:
    """The account that is logged in where this runs; "" where nobody has to, and outside of requests."""
    return _account.get()


class UnknownJob(LookupError):
    """There is no job of that id, or it was forgotten."""


class Paused(Exception):
    """Raised by the work of a job to let others go first: it waits again, and is called again when its turn comes."""


class Job:
    """One piece of work with its own cancel token. ``progress`` is handed to the work; safe for threads.

    ``owner`` is the client that asked for it, as annotations tell clients apart, and ``login`` the account that is
    logged in, :func:`account` where it is not given. ``model`` is the one that it is done for, ``subject`` whatever
    the work is about: two jobs with equal subjects do the same. A ``brief`` job is listed while it runs or waits and
    forgotten when it ends.
    """

    def __init__(
        self,
        kind: str,
        *,
        title: str = "",
        owner: str = "",
        login: str | None = None,
        image: str = "",
        model: str = "",
        subject: object = None,
        brief: bool = False,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.kind, self.title, self.owner, self.image, self.model = kind, title, owner, image, model
        self.login = account() if login is None else login
        self.subject, self.brief = subject, brief
        self.state: State = "queued"
        self.detail = ""
        self.result: Future[Any] = Future()
        self.token = CancelToken()
        self._lock = threading.Lock()
        self._now: tuple[str, int, int] = ("", 0, 0)
        self._began = 0.0

    def progress(self, phase: str, done: int, total: int) -> None:
        """A :data:`~ssmsam.progress.Progress`. Raises Cancelled after :meth:`cancel`."""
        with self._lock:
            if self._now[0] != phase:
                self._began = time.monotonic()
            self._now = (phase, done, total)
        if self.token.cancelled:
            raise Cancelled
        stop_if_cancelled()

    def cancel(self) -> None:
        """Ask the work to stop; it does at its next step."""
        self.token.cancel()

    def end(self, state: State) -> None:
        """Note how the work ended."""
        self.state = state

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self.token.cancelled

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
    """One queue for all kinds of work, the oldest first unless another is put before it.

    Of each kind ``workers`` jobs run at a time, in threads that start with the first of the kind: an adaptation waits
    for another one, but not for a training. Work that a request does in its own thread is listed with
    :meth:`running`. ``kept`` ended jobs are remembered.
    """

    def __init__(self, *, workers: int = 1, kept: int = KEPT) -> None:
        self.turns = Turns()
        """Whose turn it is to compute. Queued jobs pause for clicks."""
        self._workers, self._kept = workers, kept
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._work: dict[str, Callable[[Job], Any]] = {}
        """Of those that wait."""
        self._turns: dict[str, int] = {}
        """Of those that did not end: the lowest is the next."""
        self._back, self._front = itertools.count(), itertools.count(-1, -1)
        self._threads: dict[str, list[threading.Thread]] = {}
        self._stopping = False

    def submit(self, job: Job, work: Callable[[Job], Any], *, first: bool = False) -> Job:
        """Queue ``work(job)``, which may set the job's ``detail``. Its result or error is in ``job.result``.

        ``first`` puts it before all others. Raises RuntimeError after :meth:`stop`.
        """
        with self._changed:
            if self._stopping:
                raise RuntimeError("the queue was stopped")
            self._jobs[job.id], self._work[job.id] = job, work
            self._turns[job.id] = next(self._front if first else self._back)
            if len(self._threads.get(job.kind, ())) < self._workers:
                if not self._threads:
                    atexit.register(self.stop)
                thread = threading.Thread(target=self._run, args=(job.kind,), name=f"jobs-{job.kind}", daemon=True)
                self._threads.setdefault(job.kind, []).append(thread)
                thread.start()
            self._changed.notify_all()
        return job

    def bring_forward(self, job: Job) -> None:
        """Put a job that did not end before all others."""
        with self._changed:
            if job.id in self._turns:
                self._turns[job.id] = next(self._front)

    def outranked(self, job: Job) -> bool:
        """Whether another one of its kind waits that goes before it."""
        with self._changed:
            return any(self._rank(one) < self._rank(job) for one in self._waiting(job.kind))

    @contextmanager
    def running(self, job: Job) -> Iterator[Job]:
        """List a job while the caller does its work in this block, which its token can stop. Cancelled inside is
        passed on."""
        with self._changed:
            self._jobs[job.id] = job
            job.state = "running"
        try:
            with cancellable(job.token):
                yield job
        except BaseException as error:
            self._end(job, error)
            raise
        self._end(job)

    def get(self, name: str) -> Job:
        """Raises :class:`UnknownJob`."""
        with self._changed:
            if name not in self._jobs:
                known = ", ".join(sorted(self._jobs)) or "none"
                raise UnknownJob(
                    f"there is no job {shown(name)}; known: {known}. It may have ended long ago; GET /jobs lists them"
                )
            return self._jobs[name]

    def listed(self) -> list[Job]:
        """Those that run, those that wait in their order, then those that ended, the newest first."""
        with self._changed:
            jobs = list(self._jobs.values())
            queued = sorted((job for job in jobs if job.state == "queued"), key=self._rank)
        running = [job for job in jobs if job.state == "running"]
        return [*running, *queued, *reversed([job for job in jobs if job.ended])]

    def active(self, kind: str = "", *, model: str = "") -> list[Job]:
        """Those that run or wait, of a kind and a model where given."""
        jobs = [job for job in self.listed() if not job.ended]
        return [job for job in jobs if kind in ("", job.kind) and model in ("", job.model)]

    def cancel(self, name: str) -> Job:
        """Stop one job, and no other: one that waits ends at once. One that ended stays so. Raises UnknownJob."""
        job = self.get(name)
        job.cancel()
        self._drop(job)
        return job

    def stop(self, *, timeout: float = 10.0) -> None:
        """Cancel everything and end the workers."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            threads = [thread for threads in self._threads.values() for thread in threads]
        for job in self.active():
            job.cancel()
            self._drop(job)
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _drop(self, job: Job) -> None:
        """End a job that waits."""
        with self._changed:
            waiting = self._work.pop(job.id, None) is not None
        if waiting:
            self._end(job, Cancelled())

    def _rank(self, job: Job) -> int:
        return self._turns.get(job.id, 0)

    def _waiting(self, kind: str) -> list[Job]:
        return [self._jobs[name] for name in self._work if self._jobs[name].kind == kind]

    def _run(self, kind: str) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting(kind))
                if self._stopping:
                    return
                job = min(self._waiting(kind), key=self._rank)
                work = self._work.pop(job.id)
                job.state = "running"
            self._carry_out(job, work)

    def _carry_out(self, job: Job, work: Callable[[Job], Any]) -> None:
        try:
            with cancellable(job.token), self.turns.pausing():
                found = work(job)
        except Paused:
            with self._changed:
                job.state, self._work[job.id] = "queued", work
            if job.cancelled or self._stopping:  # since its last step
                self._drop(job)
        except BaseException as error:  # whatever is wrong with one job, the next one may be fine
            if not isinstance(error, Cancelled):
                job.detail = job.detail or str(error)
                logger.warning("A job failed: %s", job.title or job.kind, exc_info=error)
            self._end(job, error)
        else:
            self._end(job, found=found)

    def _end(self, job: Job, error: BaseException | None = None, found: Any = None) -> None:
        with self._changed:
            job.end("done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed")
            self._turns.pop(job.id, None)
            self._jobs.pop(job.id, None)
            if not job.brief:
                self._jobs[job.id] = job  # the newest is the last
            for old in [one.id for one in self._jobs.values() if one.ended][: -self._kept or None]:
                del self._jobs[old]
        if error is None:
            job.result.set_result(found)
        else:
            job.result.set_exception(error)
