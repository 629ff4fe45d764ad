"""Embedding in the background: the image that was served last first, nearest slices first."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ssmsam.encoders.embedder import nearest_first
from ssmsam.progress import Cancelled
from ssmsam.server.images import Images, OpenImage

logger = logging.getLogger(__name__)


WAITING = 4
"""Images that may wait at most; the ones wished for first are forgotten first."""


@dataclass(frozen=True, eq=False)
class _Wish:
    image: str | OpenImage
    near: int | None


class Background:
    """One worker thread that embeds what will be needed next. It starts with the first wish.

    The newest wish goes first and interrupts the one at work, which waits for its next turn. The encoder itself lets
    clicks go before this work; nothing here is ever waited for.
    """

    def __init__(self, images: Images, *, enabled: bool = True) -> None:
        self._images = images
        self._enabled = enabled
        self._changed = threading.Condition()
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        self._worker: threading.Thread | None = None
        self._stopping = False
        self._interrupted = False
        self._status: dict[str, Any] = {"image": "", "done": 0, "total": 0}

    @property
    def status(self) -> dict[str, Any]:
        """What is being embedded: image id, slices done, slices in all, images that wait."""
        return {**self._status, "waiting": len(self._wishes)}

    def prefer(self, image: str | OpenImage, near: int | None = None) -> None:
        """Embed this image next (an id, or one that is open), beginning at slice ``near``, else in the middle."""
        if not self._enabled:
            return
        if isinstance(image, OpenImage) and image.source.image_id:
            image = image.source.image_id  # a waiting id holds no volume in memory
        name = image if isinstance(image, str) else image.key
        with self._changed:
            self._wishes[name] = _Wish(image, near)
            self._wishes.move_to_end(name)
            while len(self._wishes) > WAITING:
                self._wishes.popitem(last=False)
            self._interrupted = True
            self._changed.notify()
            if self._worker is None and not self._stopping:
                self._worker = threading.Thread(target=self._run, name="embed", daemon=True)
                self._worker.start()
                atexit.register(self.stop)

    def stop(self, *, timeout: float = 10.0) -> None:
        """End the worker between two batches. Embedded slices stay."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self._wishes))
                if self._stopping:
                    return
                name, wish = self._wishes.popitem()
                self._interrupted = False
            try:
                self._embed(wish)
            except Cancelled:
                with self._changed:
                    if name not in self._wishes:  # else it was wished for again meanwhile
                        self._wishes[name] = wish
                        self._wishes.move_to_end(name, last=False)
            except Exception:  # whatever is wrong with one image, the next one may be fine
                logger.exception("Embedding in the background failed")

    def _embed(self, wish: _Wish) -> None:
        image = wish.image
        if isinstance(image, str):
            image = self._images.open(self._images.from_datastore(image))
        embeddings, name = image.embeddings, image.source.image_id
        near = embeddings.count // 2 if wish.near is None else wish.near

        def progress(phase: str, done: int, total: int) -> None:
            self._status = {"image": name, "done": done, "total": total}
            if self._stopping or self._interrupted:
                raise Cancelled

        embeddings.embed(nearest_first(near, embeddings.count), progress=progress)
