"""Embedding in the background: the image that somebody turned to last first, nearest slices first."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ssmsam.encoders.embedder import nearest_first
from ssmsam.progress import Cancelled
from ssmsam.server.images import UNUSABLE, Images, OpenImage, Source
from ssmsam.service.jobs import Job, UnknownJob

logger = logging.getLogger(__name__)

EMBED = "embed"
"""The kind of these jobs."""
WAITING = 4
"""Images that may wait at most; the ones wished for first are forgotten first."""
WANTED_S = 600.0
"""How long an image is wanted after the last request about it: a guess."""


@dataclass(frozen=True, eq=False)
class _Wish:
    image: str | Source
    near: int | None
    until: float
    """When nobody wants it any more, in seconds of the monotonic clock."""
    job: Job


class Background:
    """One worker thread that embeds what will be needed next. It starts with the first wish.

    The newest wish goes first and interrupts the one at work, which waits for its next turn. An image is wanted for
    ``wanted_s`` seconds after the last request about it, so that nothing is done for nobody. While a request is
    answered (:meth:`giving_way`) no slice is begun, and the encoder lets a click pass in the middle of one.
    """

    def __init__(self, images: Images, *, enabled: bool = True, wanted_s: float = WANTED_S) -> None:
        self._images = images
        self._enabled = enabled
        self._wanted_s = wanted_s
        self._changed = threading.Condition()
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        """By the image's name; the newest is the last. The one at work is among them."""
        self._worker: threading.Thread | None = None
        self._at_work: _Wish | None = None
        self._requests = 0
        self._stopping = False
        self._status: dict[str, Any] = {"image": "", "phase": "", "done": 0, "total": 0}

    @property
    def status(self) -> dict[str, Any]:
        """What was embedded last: image id, phase ("embed", or "" when nothing is), slices done, slices in all, images
        that wait."""
        with self._changed:
            working = self._at_work is not None
            return {
                **self._status,
                "phase": self._status["phase"] if working else "",
                "waiting": len(self._wishes) - working,
            }

    def listed(self) -> list[dict[str, Any]]:
        """What is embedded and what waits for it, as ``GET /jobs`` lists jobs."""
        with self._changed:
            return [wish.job.as_json() for wish in reversed(self._wishes.values())]

    def cancel(self, name: str) -> dict[str, Any]:
        """End the job of that id, until somebody turns to its image again. Raises UnknownJob."""
        with self._changed:
            for image, wish in self._wishes.items():
                if wish.job.id == name:
                    wish.job.cancel()
                    if wish is not self._at_work:
                        self._end(image, "cancelled")
                    self._changed.notify_all()
                    return wish.job.as_json()
        raise UnknownJob(f"no image is embedded in a job {name!r}")

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
            until, before = time.monotonic() + self._wanted_s, self._wishes.get(name)
            if before is None or before.job.cancelled:
                called = wanted if isinstance(wanted, str) else wanted.name
                job = Job(EMBED, title=f"slices of {called} are made ready", owner=client, image=_id_of(wanted))
                self._wishes[name] = _Wish(wanted, near, until, job)
            else:
                self._wishes[name] = replace(before, near=before.near if near is None else near, until=until)
            self._wishes.move_to_end(name)
            while len(self._wishes) > WAITING:
                self._end(next(iter(self._wishes)), "cancelled")
            self._changed.notify_all()
            if self._worker is None and not self._stopping:
                self._worker = threading.Thread(target=self._run, name="embed", daemon=True)
                self._worker.start()
                atexit.register(self.stop)

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Begin no slice in this block: somebody waits for what is done in it."""
        with self._changed:
            self._requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._changed.notify_all()

    def stop(self, *, timeout: float = 10.0) -> None:
        """End the worker between two batches. Embedded slices stay."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or (self._wishes and not self._requests))
                if self._stopping:
                    return
                name, wish = next(reversed(self._wishes.items()))
                if self._unwanted(name):
                    self._end(name, "cancelled")
                    continue
                self._at_work, wish.job.state = wish, "running"
            try:
                self._embed(name, wish)
                ended = "done"
            except Cancelled:
                ended = "cancelled" if wish.job.cancelled else "queued"
            except UNUSABLE as error:
                logger.warning("Not embedded: %s", error)
                ended = "failed"
            except Exception:  # whatever is wrong with one image, the next one may be fine
                logger.exception("Embedding in the background failed")
                ended = "failed"
            with self._changed:
                self._at_work = None
                now = self._wishes.get(name)
                if now is not None and now.job is wish.job:
                    if ended == "queued":
                        wish.job.state = "queued"
                    else:
                        self._end(name, ended)

    def _embed(self, name: str, wish: _Wish) -> None:
        source = self._images.from_datastore(wish.image) if isinstance(wish.image, str) else wish.image
        embeddings = self._images.open(source).embeddings
        near = embeddings.count // 2 if wish.near is None else min(max(wish.near, 0), embeddings.count - 1)

        def progress(phase: str, done: int, total: int) -> None:
            with self._changed:
                self._status = {"image": source.image_id, "phase": phase, "done": done, "total": total}
                if done < total:
                    self._changed.wait_for(lambda: not self._requests or not self._goes_on(name, wish))
                    if not self._goes_on(name, wish):
                        raise Cancelled
            wish.job.progress(phase, done, total)

        with self._images.reading(source.image_id):
            embeddings.embed(nearest_first(near, embeddings.count), progress=progress)

    def _goes_on(self, name: str, wish: _Wish) -> bool:
        """Whether a wish is still the newest one, unchanged, and wanted."""
        newest = next(reversed(self._wishes), None)
        now = self._wishes.get(name)
        same = now is not None and now.job is wish.job and now.near == wish.near and not wish.job.cancelled
        return same and newest == name and not self._stopping and not self._unwanted(name)

    def _unwanted(self, name: str) -> bool:
        return name in self._wishes and time.monotonic() > self._wishes[name].until

    def _end(self, name: str, state: Any) -> None:
        wish = self._wishes.pop(name)
        if state == "cancelled":
            wish.job.cancel()
        wish.job.state = state


def _id_of(image: str | Source) -> str:
    return image if isinstance(image, str) else image.image_id
