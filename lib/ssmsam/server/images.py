"""From what a request names to an opened volume. The only way from an id to a file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from monailabel.interfaces.datastore import Datastore
from monailabel.utils.sessions import Sessions

from ssmsam.cache import Cache, SingleFlight
from ssmsam.encoders.embedder import Embedder, VolumeEmbeddings
from ssmsam.encoders.manifest import sha256_of
from ssmsam.imaging.reading import UnreadableVolume, read_volume
from ssmsam.imaging.volume import Volume
from ssmsam.server.dicomweb import DicomWebArchive
from ssmsam.server.errors import InvalidRequest, NotKnown
from ssmsam.server.identifiers import is_session_id


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


class Images:
    """Finds, reads and keeps open what requests name, within a limit of bytes. Safe for threads."""

    def __init__(self, *, datastore: Datastore, embedder: Embedder, memory_bytes: int) -> None:
        self._datastore = datastore
        self._embedder = embedder
        self._open: Cache[tuple[Path, tuple[int, ...] | str], OpenImage] = Cache(
            memory_bytes, size=lambda image: image.volume.array.nbytes, keep_newest=True
        )
        self._fetching: SingleFlight[str, str] = SingleFlight()

    def require(self, image_id: str) -> str:
        """``image_id`` if the datastore has it, else :class:`NotKnown`."""
        if not image_id:
            raise InvalidRequest("the request names no image: give image=ID, a session_id, or send a file")
        if not self._knows(image_id):
            raise NotKnown("image", image_id, step="GET /datastore/?output=all lists what there is")
        return image_id

    def from_datastore(self, image_id: str) -> Source:
        """The source of a datastore image. A remote store fetches it first. Raises NotKnown."""
        self.require(image_id)
        uri = self._fetching.run(image_id, lambda: str(self._datastore.get_image_uri(image_id) or ""))
        path = Path(uri) if uri else None
        if path is None or not path.exists():
            raise NotKnown("image", image_id, step="its file was removed from the datastore")
        return Source(image_id, path, _stamp(path), image_id)

    def from_session(self, sessions: Sessions | None, session_id: str) -> Source:
        """The source of an image sent with ``PUT /session/``. Raises NotKnown."""
        session = sessions.get_session(session_id) if sessions is not None and is_session_id(session_id) else None
        if session is None:
            raise NotKnown("session", session_id, step="It may have expired: send the image again")
        path = Path(session.image)
        return Source("the uploaded image", path, _stamp(path))

    def from_upload(self, path: Path) -> Source:
        """The source of a file that came with the request: the same bytes are the same image."""
        return Source("the uploaded image", path, sha256_of(path))

    def open(self, source: Source) -> OpenImage:
        """Read and embed-on-demand. Raises UnreadableVolume, whose message names the image, not its path."""
        key = (Path() if isinstance(source.stamp, str) else source.path, source.stamp)
        return self._open.recalled(key, lambda: self._read(source))

    def _read(self, source: Source) -> OpenImage:
        try:
            volume = read_volume(source.path)
        except UnreadableVolume as error:
            raise UnreadableVolume(str(error).replace(str(source.path), source.name)) from error
        return OpenImage(source, volume, self._embedder.open(volume))

    def _knows(self, image_id: str) -> bool:
        if isinstance(self._datastore, DicomWebArchive):
            return self._datastore.knows(image_id)
        if image_id in self._datastore.list_images():
            return True
        time.sleep(0.05)  # the folder's watcher empties the list for a moment while it looks again
        return image_id in self._datastore.list_images()


def _stamp(path: Path) -> tuple[int, ...]:
    if path.is_dir():
        files = [entry.stat() for entry in path.iterdir() if entry.is_file()]
        return len(files), sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
