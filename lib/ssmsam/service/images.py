"""From what a request names to an opened volume, the only way from an id to a file; and what cannot be read, set aside
with its reason, so that nobody waits for it and everybody is told."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmsam.annotation.annotations import OtherImage
from ssmsam.annotation.store import CorruptAnnotations
from ssmsam.cache import Cache, SingleFlight
from ssmsam.dicom.web import SeriesRefused, SeriesUnavailable
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.models.weights import sha256_of
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.service.annotated_studies import StudyFiles
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.volume.errors import named
from ssmsam.volume.geometry import STORED_SLICES, Plane
from ssmsam.volume.volume import Volume

logger = logging.getLogger(__name__)

UNUSABLE = (NotKnown, OtherImage, UnreadableVolume, CorruptAnnotations, SeriesRefused, SeriesUnavailable, OSError)
"""What is raised when one image cannot be used. It says nothing of the others: who works on many images goes on. An
archive that is down is another matter."""
_OF_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the system that say nothing of an image: what is kept beside it could not be written."""
RETRY_S = 60.0
"""After so many seconds an image of a remote store is tried again; of a file it is seen when it changes. A guess."""
MOST = 10_000
"""Images that are remembered, at most; those set aside first are forgotten first."""


@dataclass(frozen=True)
class Source:
    """A file or folder that a request is allowed to use as its image."""

    name: str
    """What the user calls it: an image id, or a word for an upload."""
    path: Path
    stamp: tuple[int, ...] | str
    """Changes when the content does: time and size, or a digest."""
    image_id: str = ""
    """Its id in the datastore; empty for sessions and uploads."""


@dataclass(frozen=True, eq=False)
class OpenImage:
    """An image that is being worked on."""

    source: Source
    volume: Volume
    embeddings: VolumeEmbeddings

    @property
    def key(self) -> str:
        """What click state belongs to: another image under the same name is another key."""
        return f"{self.source.image_id}@{self.volume.digest}"


@dataclass(frozen=True)
class Refusal:
    """Why an image was set aside, in a sentence with the next step, and since when (seconds since 1970).

    ``state`` is what the image was then: a refusal counts as long as it is the same. None counts for :data:`RETRY_S`.
    """

    reason: str
    state: Hashable
    since: float


class SetAside:
    """The images that could not be read. Safe for threads.

    Args:
        state: image id -> what changes when the image does (time and size of its file), None where that cannot be told
            without fetching it. It has to be quick and must not raise.

    Example:
        >>> aside = SetAside(lambda image: 1)
        >>> aside.note("case07", "case07: the header is damaged: export it again.")
        >>> aside.reason("case07")
        'case07: the header is damaged: export it again.'
        >>> aside.reason("case08")
        ''
    """

    def __init__(self, state: Callable[[str], Hashable], *, clock: Callable[[], float] = time.time) -> None:
        self._state, self._clock = state, clock
        self._refusals: dict[str, Refusal] = {}
        self._lock = threading.Lock()

    def note(self, image: str, reason: str) -> None:
        """An image could not be read just now."""
        refusal = Refusal(reason, self._state(image), self._clock())
        with self._lock:
            self._refusals.pop(image, None)
            self._refusals[image] = refusal
            if len(self._refusals) > MOST:
                del self._refusals[next(iter(self._refusals))]

    def clear(self, image: str) -> None:
        """An image was read."""
        with self._lock:
            self._refusals.pop(image, None)

    def reason(self, image: str) -> str:
        """Why an image is set aside; "" for one that is not, or that changed since and may be tried again."""
        refusal = self._refusals.get(image)
        if refusal is None:
            return ""
        known, age_s = refusal.state, self._clock() - refusal.since
        if age_s < RETRY_S if known is None else self._state(image) == known:
            return refusal.reason
        with self._lock:
            if self._refusals.get(image) is refusal:
                del self._refusals[image]
        return ""

    def as_json(self) -> list[dict[str, Any]]:
        """``image``, ``reason`` and ``since`` (seconds since 1970) of each, the newest first."""
        listed = [(image, refusal) for image, refusal in reversed(list(self._refusals.items())) if self.reason(image)]
        return [{"image": image, "reason": one.reason, "since": round(one.since, 1)} for image, one in listed]


class Images:
    """Finds, reads and keeps open what requests name, within a limit of bytes. Safe for threads."""

    def __init__(self, *, files: StudyFiles, embedder: Embedder, memory_bytes: int) -> None:
        self._files = files
        self._embedder = embedder
        self._open: Cache[tuple[Path, tuple[int, ...] | str], OpenImage] = Cache(
            memory_bytes, size=lambda image: image.volume.array.nbytes, keep_newest=True
        )
        self._fetching: SingleFlight[str, str] = SingleFlight()
        self._aside = SetAside(self._state)

    def usable(self, images: Iterable[str]) -> list[str]:
        """Those that are not set aside: as far as is known they can be read."""
        return [image for image in images if not self._aside.reason(image)]

    def set_aside(self) -> list[dict[str, Any]]:
        """The images that could not be read and have not changed since: ``image``, ``reason``, ``since``."""
        return self._aside.as_json()

    @contextmanager
    def reading(self, image_id: str) -> Iterator[None]:
        """What is raised inside because the image cannot be read sets it aside, until it changes."""
        try:
            yield
        except (NotKnown, OtherImage):  # it was removed, or can be read and has annotations of another
            raise
        except UNUSABLE as error:
            ours = isinstance(error, OSError) and error.errno in _OF_OURS
            if image_id and not ours and not self._aside.reason(image_id):
                logger.warning("Image %s is set aside: %s", image_id, error)
                self._aside.note(image_id, self._told(error, image_id))
            raise

    def require(self, image_id: str) -> str:
        """``image_id`` if the datastore has it, else :class:`NotKnown`."""
        if not image_id:
            raise InvalidRequest("the request names no image: give image=ID, a session_id, or send a file")
        known = self._files.knows(image_id)
        if not known and not self._files.remote:
            time.sleep(0.05)  # a file that came just now is listed a moment later
            known = self._files.knows(image_id)
        if not known:
            raise NotKnown("image", image_id, step="GET /datastore/?output=all lists what there is")
        return image_id

    def from_datastore(self, image_id: str) -> Source:
        """The source of a datastore image. A remote store fetches it first. Raises NotKnown."""
        self.require(image_id)
        with self.reading(image_id):
            uri = self._fetching.run(image_id, lambda: str(self._files.get_image_uri(image_id) or ""))
            path = Path(uri) if uri else None
            if path is None or not path.exists():
                raise NotKnown("image", image_id, step="its file was removed from the datastore")
            return Source(image_id, path, _stamp(path), image_id)

    def embeddings(self, image_id: str, *, plane: Plane = STORED_SLICES) -> VolumeEmbeddings:
        """Those of a datastore image, whose pixels are read only when a slice has to be encoded. Raises NotKnown and
        UnreadableVolume, whose message names the image, not its path."""
        source = self.from_datastore(image_id)
        with self.reading(image_id), named(source.path, source.name):
            return self._embedder.open_source(source.path, plane=plane)

    def from_session(self, path: Path) -> Source:
        """The source of an image that was sent for a while."""
        return Source("the uploaded image", path, _stamp(path))

    def from_upload(self, path: Path) -> Source:
        """The source of a file that came with the request: the same bytes are the same image."""
        return Source("the uploaded image", path, sha256_of(path))

    def opened(self, source: Source) -> OpenImage | None:
        """The image where it is open."""
        return self._open.get(_key(source))

    def open(self, source: Source) -> OpenImage:
        """Read and embed-on-demand. Raises UnreadableVolume, whose message names the image, not its path."""
        return self._open.recalled(_key(source), lambda: self._read(source))

    def _read(self, source: Source) -> OpenImage:
        with self.reading(source.image_id), named(source.path, source.name):
            volume = read_volume(source.path)
            image = OpenImage(source, volume, self._embedder.open(volume))
        self._aside.clear(source.image_id)
        return image

    @staticmethod
    def _told(error: Exception, image_id: str) -> str:
        """What people are told: a message of the system would hold paths."""
        if isinstance(error, OSError):
            why = error.strerror or type(error).__name__
            return f"{image_id}: its file cannot be read ({why}): the server's account needs the right to read it."
        if isinstance(error, CorruptAnnotations):
            return f"{image_id}: its stored annotations are damaged; the server's log names the file and what to do."
        return str(error)

    def _state(self, image_id: str) -> tuple[int, ...] | None:
        """Of an image's file, for :class:`SetAside`; None of one that would have to be fetched."""
        if self._files.remote:
            return None
        try:
            return _stamp(Path(self._files.get_image_uri(image_id)))
        except Exception:  # it was removed, or cannot be looked at: that is a state too
            return ()


def _key(source: Source) -> tuple[Path, tuple[int, ...] | str]:
    return (Path() if isinstance(source.stamp, str) else source.path), source.stamp


def _stamp(path: Path) -> tuple[int, ...]:
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    known = ((str(file), file.stat()) for file in sorted(files))
    return (hash(tuple((name, one.st_size, one.st_mtime_ns, one.st_ino) for name, one in known)),)
