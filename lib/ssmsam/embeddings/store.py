"""The embedding store: what an encoder computed, kept on disk so that it never sees a slice twice."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import uuid
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from filelock import FileLock

from ssmsam.embeddings.stored_volume import StoredVolume
from ssmsam.models.encoder import Encoder
from ssmsam.models.frame import Window
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Grid

logger = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key: raise it when the files, or how encoder inputs are made of slices, change."""

DEFAULT_QUOTA_BYTES = 20 * 2**30


@dataclass(frozen=True)
class EmbeddingKey:
    """Everything that changes the embeddings of a volume."""

    pixel_digest: str
    """:attr:`Volume.digest`, which covers voxels and geometry."""
    plane: int
    """The array axis the slices are taken along."""
    recipe_digest: str
    encoder: str
    weights_sha256: str
    layers: tuple[str, ...]
    """Which maps, of which size and stride, from how many neighbouring slices, in which precision if not single, and of
    which window if not of whole slices."""

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        *,
        pixel_digest: str,
        plane: Plane,
        recipe_digest: str,
        bfloat16: bool = False,
        window: Window | None = None,
    ) -> EmbeddingKey:
        """The key of one encoder's embeddings of a volume."""
        spec = encoder.spec
        layers = [f"input {spec.input_size}, context {spec.context}", f"image {spec.channels} at {spec.stride}"]
        names = spec.level_names or tuple(f"level{i}" for i in range(len(spec.level_strides)))
        for name, channels, stride in zip(names, spec.level_channels, spec.level_strides, strict=True):
            layers.append(f"{name} {channels} at {stride}")
        layers += [spec.kept] if spec.kept else []
        layers += ["bfloat16"] * bfloat16
        if window:
            layers.append(f"window {window.height} x {window.width} at {window.y}, {window.x}")
        return cls(pixel_digest, plane.axis, recipe_digest, spec.name, encoder.weights_sha256, tuple(layers))

    @cached_property
    def digest(self) -> str:
        """sha256 of the key: the folder's name in the store."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StoreEntry:
    """One volume in the store."""

    digest: str
    folder: Path
    bytes: int
    """At full length; slices that are not embedded yet take no room on most disks."""
    used: float
    """Seconds since the epoch of the last use."""


class EmbeddingStore:
    """Embeddings of volumes under ``root``, at most ``quota_bytes``; several processes may use it at once.

    A new volume counts with its full size. When there is no room for it, volumes go that were not used for the
    longest time, but none that this process has open; when that is not enough, the new one stays in memory.
    A process that still reads a volume which another one removes makes it again. Raises OSError when ``root`` cannot
    be made.
    """

    def __init__(self, root: Path | str, *, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self.root = Path(root).expanduser()
        self.quota_bytes = quota_bytes
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)  # what lies here shows patients
        except OSError as error:
            raise OSError(
                error.errno, f"the embedding store's folder {self.root} cannot be made ({error}): choose another folder"
            ) from error
        self._open: WeakValueDictionary[str, StoredVolume] = WeakValueDictionary()
        self._opening = threading.Lock()

    def open(self, key: EmbeddingKey, *, grid: Grid, count: int) -> StoredVolume:
        """The place of a volume's embeddings. Nothing is written before the first slice is.

        The same key gives the same object while somebody holds it, and a volume that is held is never removed.
        """
        with self._opening:
            stored = self._open.get(key.digest)
            if stored is None:
                stored = self._open[key.digest] = StoredVolume(
                    self._folder(key.digest),
                    count=count,
                    identity=_identity(key, grid, count),
                    lock=FileLock(self.root / "store.lock"),
                    reserve=lambda size: self._make_room(size, newcomer=key.digest),
                )
            return stored

    def entries(self) -> list[StoreEntry]:
        """What is stored, the least recently used first."""
        found = [self._entry(meta.parent) for meta in self.root.glob("??/*/meta.json")]
        return sorted((entry for entry in found if entry), key=lambda entry: entry.used)

    def remove(self, digest: str) -> None:
        """Remove a volume's embeddings: out of sight at once, then from the disk."""
        hidden = self.root / f"removed-{uuid.uuid4().hex}"
        self._folder(digest).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _make_room(self, size: int, *, newcomer: str) -> bool:
        """Whether ``size`` more bytes fit, after removing what was not used for longest. Called under the lock."""
        for leftover in self.root.glob("removed-*"):  # of a process that was killed while removing
            shutil.rmtree(leftover, ignore_errors=True)
        entries = [entry for entry in self.entries() if entry.digest != newcomer]
        excess = sum(entry.bytes for entry in entries) + size - self.quota_bytes
        idle = [entry for entry in entries if entry.digest not in self._open]
        if excess > sum(entry.bytes for entry in idle):
            return False
        for entry in idle:
            if excess <= 0:
                break
            logger.info("removing embeddings to stay in the quota folder=%s bytes=%d", entry.folder, entry.bytes)
            self.remove(entry.digest)
            excess -= entry.bytes
        return True

    def _folder(self, digest: str) -> Path:
        return self.root / digest[:2] / digest

    @staticmethod
    def _entry(folder: Path) -> StoreEntry | None:
        try:
            size = sum(path.stat().st_size for path in folder.glob("*.npy"))
            return StoreEntry(folder.name, folder, size, (folder / "used").stat().st_mtime)
        except FileNotFoundError:  # removed by another process in this moment
            return None


def _identity(key: EmbeddingKey, grid: Grid, count: int) -> dict[str, Any]:
    """What ``meta.json`` says: enough to know the volume without opening it."""
    fields = asdict(key) | {"layers": list(key.layers)}
    return {
        "format": FORMAT,
        "key": fields,
        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
        "count": count,
    }
