"""Embedding in the background: the image that somebody turned to last first, nearest slices first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ssmsam.embeddings.embedder import VolumeEmbeddings, nearest_first
from ssmsam.progress import POLL_S, Cancelled
from ssmsam.service.images import Images, OpenImage, Source
from ssmsam.service.jobs import Job, Jobs, Paused

EMBED = "embed"
"""The kind of these jobs."""
WAITING = 4
"""Images that may wait at most; the ones wished for first are forgotten first."""
WANTED_S = 600.0
"""How long an image is wanted after the last request about it: a guess."""


@dataclass(eq=False)
class _EmbeddingRequest:
    image: str | Source
    near: int | None
    until: float
    """When nobody wants it any more, in seconds of the monotonic clock."""
    job: Job

    @property
    def stands(self) -> bool:
        return not (self.job.cancelled or self.job.ended)


class Background:
    """Embeds what will be needed next, in jobs of the kind :data:`EMBED`, one at a time.

    When all slices of an image are embedded, its ``steps_ahead`` follow: what else proposals will want of it, each call
    a moment's work.

    The newest request goes first and interrupts the one at work, which waits for its next turn. An image is wanted for
    ``wanted_s`` seconds after the last request about it, so that nothing is done for nobody. While a click is answered
    no slice is begun, and the encoder lets one pass in the middle of a slice; with other long work it takes turns.
    """

    def __init__(
        self,
        images: Images,
        *,
        jobs: Jobs | None = None,
        enabled: bool = True,
        wanted_s: float = WANTED_S,
        steps_ahead: Callable[[VolumeEmbeddings], Sequence[Callable[[], object]]] | None = None,
    ) -> None:
        self.jobs = jobs or Jobs()
        self._images = images
        self._enabled = enabled
        self._wanted_s = wanted_s
        self._steps_ahead = steps_ahead
        self._changed = threading.Condition()
        self._by_image: dict[str, _EmbeddingRequest] = {}
        """By the image's name; the newest is the last. At most one more than may wait, see :data:`WAITING`."""
        self._status: dict[str, Any] = {"image": "", "phase": "", "done": 0, "total": 0}

    @property
    def status(self) -> dict[str, Any]:
        """What was made ready last: image id, phase ("embed", then "motion" with steps ahead, or "" when nothing is),
        slices done, slices in all, images that wait."""
        active = self.jobs.active(EMBED)
        working = any(job.state == "running" for job in active)
        with self._changed:
            return {
                **self._status,
                "phase": self._status["phase"] if working else "",
                "waiting": len(active) - working,
            }

    def prefer(self, image: str | Source | OpenImage, near: int | None = None, *, client: str = "") -> None:
        """Embed this image next (an id, or what it was opened from), for a client. Slice ``near`` comes first, else
        the one that was said last, else the middle."""
        if not self._enabled:
            return
        if isinstance(image, OpenImage):
            image = image.source  # a waiting one holds no volume in memory
        wanted: str | Source = image if isinstance(image, str) else image.image_id or image
        name = wanted if isinstance(wanted, str) else f"{wanted.path} {wanted.stamp}"
        with self._changed:
            self._by_image = {key: request for key, request in self._by_image.items() if request.stands}
            until, known = time.monotonic() + self._wanted_s, self._by_image.pop(name, None)
            called, image_id = (wanted, wanted) if isinstance(wanted, str) else (wanted.name, wanted.image_id)
            job = Job(EMBED, title=f"slices of {called} are made ready", owner=client, image=image_id, brief=True)
            request = self._by_image[name] = known or _EmbeddingRequest(wanted, near, until, job)
            request.near, request.until = request.near if near is None else near, until
            waiting = [one for one in self._by_image.values() if one is not request and one.job.state == "queued"]
        if known is None:
            with suppress(RuntimeError):  # the server ends
                self.jobs.submit(request.job, lambda job: self._embed(request), first=True)
        else:
            self.jobs.bring_forward(request.job)
        for old in waiting[: max(0, len(waiting) + 1 - WAITING)]:
            self.jobs.cancel(old.job.id)

    def stop(self, *, timeout: float = 10.0) -> None:
        """End what is embedded between two batches, and begin nothing more. Embedded slices stay."""
        self._enabled = False
        for job in self.jobs.active(EMBED):
            with suppress(LookupError):  # it has just ended
                self.jobs.cancel(job.id)
            with suppress(Exception):
                job.result.result(timeout)

    def _embed(self, request: _EmbeddingRequest) -> None:
        """The work of a job; called again after each pause."""
        asked = request.near
        self._step(request, asked)
        source = self._images.from_datastore(request.image) if isinstance(request.image, str) else request.image
        embeddings = self._images.open(source).embeddings
        near = embeddings.count // 2 if asked is None else min(max(asked, 0), embeddings.count - 1)
        left = nearest_first(near, embeddings.count)
        while True:
            known = embeddings.done
            left = [index for index in left if not known[index]]
            self._say(request, source, "embed", embeddings.count - len(left), embeddings.count)
            if not left:
                break
            self._step(request, asked)
            size = embeddings.batch_size
            with self._one_step(source):
                embeddings.embed(left[:size])
            left = left[size:]
        steps = self._steps_ahead(embeddings) if self._steps_ahead else ()
        for number, step in enumerate(steps):
            self._say(request, source, "motion", number, len(steps))
            self._step(request, asked)
            with self._one_step(source):
                step()

    def _say(self, request: _EmbeddingRequest, source: Source, phase: str, done: int, total: int) -> None:
        with self._changed:
            self._status = {"image": source.image_id, "phase": phase, "done": done, "total": total}
        request.job.progress(phase, done, total)

    @contextmanager
    def _one_step(self, source: Source) -> Iterator[None]:
        """Each is work of its own, between which all others have their turn."""
        turns = self.jobs.turns
        with self._images.reading(source.image_id), turns.pausing(), turns.long():
            yield

    def _step(self, request: _EmbeddingRequest, near: int | None) -> None:
        """Wait while clicks are answered. Raises Paused where something else goes first, or other slices of this
        image, and Cancelled where nobody wants it any more."""
        while True:
            if request.job.cancelled or time.monotonic() > request.until:
                raise Cancelled
            if request.near != near or self.jobs.outranked(request.job):
                raise Paused
            if self.jobs.turns.quiet(POLL_S):
                return
