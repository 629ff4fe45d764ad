"""An embedding store that machines share without a common folder: an object store behind a local one.

Each finished volume is one object, a tar of its files. A worker takes it into its local store when it opens the volume,
and puts its own there when it has embedded one. Any URL that ``fsspec`` knows will do: s3://, gs://, abfs://, file://.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssmsam.embeddings.store import DEFAULT_QUOTA_BYTES, EmbeddingKey, EmbeddingStore, StoredVolume
from ssmsam.paths import default_store
from ssmsam.volume.volume import Grid

logger = logging.getLogger(__name__)

FILES = (".npy", ".bin", ".json")
FETCHING = ".fetching-"
"""How folders begin that are on their way here."""
ABANDONED_S = 24 * 3600
"""After this long nobody is fetching any more: its process has ended."""


class StoreAway(ConnectionError):
    """The object store does not answer. What was embedded is in the local store; trying again sends it."""


def open_store(
    place: str | os.PathLike[str], *, cache: str | None = None, quota_bytes: int = DEFAULT_QUOTA_BYTES
) -> EmbeddingStore:
    """The store at a folder or a URL. ``cache`` is where the local part of a URL lies, by default in the user's cache.

    Raises ValueError for a URL of a kind for which a package is missing, OSError where a folder cannot be made.
    """
    if "://" not in str(place):
        return EmbeddingStore(Path(place), quota_bytes=quota_bytes)
    name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    folder = Path(cache) if cache else default_store().parent / "shared" / name
    return ObjectStore(str(place), folder=folder, quota_bytes=quota_bytes)


class ObjectStore(EmbeddingStore):
    """A local store of at most ``quota_bytes`` that knows what others put at ``url``."""

    def __init__(self, url: str, *, folder: Path, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        super().__init__(folder, quota_bytes=quota_bytes)
        try:
            import fsspec

            local = {"auto_mkdir": True} if url.startswith(("file://", "local://")) else {}
            self._files, self._prefix = fsspec.core.url_to_fs(url.rstrip("/"), **local)
        except (ImportError, ValueError) as error:
            raise ValueError(f"the store {url} cannot be used: {error}") from None
        self._damaged: set[str] = set()
        """What others put there and nobody can use: it is replaced."""
        for left in self.root.glob(f"{FETCHING}*"):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)

    def open(self, key: EmbeddingKey, *, grid: Grid, count: int) -> StoredVolume:
        """As :meth:`EmbeddingStore.open`, with the slices that somebody else has embedded. While the object store is
        away, without them."""
        if not (self._folder(key.digest) / "meta.json").exists():
            try:
                self._fetch(key.digest)
            except StoreAway as error:
                logger.warning("%s; slices are embedded here", error)
        return super().open(key, grid=grid, count=count)

    def publish(self, key: EmbeddingKey) -> None:
        """Put a volume whose slices are all stored where the others find it, unless it is there. Raises StoreAway."""
        folder = self._folder(key.digest)
        with _answers("sending to"):
            there = key.digest not in self._damaged and self._files.exists(self._object(key.digest))
        if there or not folder.exists():
            return
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for path in sorted(folder.iterdir()):
                    if path.suffix in FILES:
                        tar.add(path, arcname=path.name, filter=_without_owner)
            packed.seek(0)
            with _answers("sending to"), self._files.open(self._object(key.digest), "wb") as remote:
                while piece := packed.read(1 << 20):
                    remote.write(piece)
        self._damaged.discard(key.digest)

    def _fetch(self, digest: str) -> None:
        """Take a volume into the local store if it is shared. Damaged slices are found when they are read."""
        with _answers("asking"):
            if not self._files.exists(self._object(digest)):
                return
            size = int(self._files.size(self._object(digest)) or 0)
        with FileLock(self.root / "store.lock"):
            if not self._make_room(size, newcomer=digest):
                return
        with tempfile.TemporaryDirectory(prefix=FETCHING, dir=self.root) as scratch:
            with _answers("reading from"), self._files.open(self._object(digest), "rb") as remote:
                try:
                    _unpack(remote, Path(scratch) / "new", most=size)
                except (tarfile.TarError, ValueError) as error:
                    logger.warning("the shared embeddings %s are damaged and will be made again: %s", digest, error)
                    self._damaged.add(digest)
                    return
            (Path(scratch) / "new" / "used").touch()
            self._folder(digest).parent.mkdir(parents=True, exist_ok=True)
            try:
                (Path(scratch) / "new").rename(self._folder(digest))
            except OSError:  # another process was first
                logger.debug("embeddings %s came twice", digest)

    def _object(self, digest: str) -> str:
        return f"{self._prefix}/{digest[:2]}/{digest}.tar"


@contextmanager
def _answers(doing: str) -> Iterator[None]:
    """Every error of the network becomes :class:`StoreAway`."""
    try:
        yield
    except Exception as error:
        raise StoreAway(f"{doing} the object store failed ({type(error).__name__}: {error})") from error


def _unpack(remote: Any, folder: Path, *, most: int) -> None:
    """Plain files of known endings, no more bytes than the object has. Raises ValueError for anything else."""
    folder.mkdir()
    with tarfile.open(fileobj=remote, mode="r|") as tar:
        for member in tar:
            name = Path(member.name).name
            if not member.isreg() or name != member.name or Path(name).suffix not in FILES or member.size > most:
                raise ValueError(f"it holds {member.name!r}")
            content = tar.extractfile(member)
            assert content is not None
            with (folder / name).open("wb") as file:
                while piece := content.read(1 << 20):
                    file.write(piece)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
