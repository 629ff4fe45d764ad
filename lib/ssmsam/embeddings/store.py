"""What an encoder computed, kept on disk so that it never sees a slice twice; and what is known of files, so that their
pixels need not be read again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from filelock import FileLock, Timeout

from ssmsam.files import whole_file
from ssmsam.models.encoder import Encoder
from ssmsam.models.frame import Window
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import CtWindow, IntensityRecipe, MrPercentiles
from ssmsam.volume.volume import Grid, Volume

logger = logging.getLogger(__name__)

Fp16Embedding = dict[str, np.ndarray]
"""Of one slice: "image" (c, h, w) and "level0", "level1", ... (c_l, h_l, w_l), all float16."""

RECORD = np.dtype([("done", "<u4"), ("checksum", "<u4")])
DONE = 0x646F6E65  # the letters "done": neither zeros nor noise mean it
USED_SECONDS = 60.0  # how exact the time of the last use is


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in its file."""

    shape: tuple[int, ...]
    offset: int

    @property
    def slice_bytes(self) -> int:
        return int(np.prod(self.shape)) * 2

    def start(self, index: int) -> int:
        """Of slice ``index``, in bytes from the start of the file."""
        return self.offset + index * self.slice_bytes


Layout = dict[str, Tensor]


class StoredVolume:
    """Reading and writing single slices of one volume. Several threads and processes may do so at once.

    A folder with one ``.npy`` file per tensor, (slices, c, h, w) float16, made at full length at once but sparse;
    ``slices.bin`` with a record per slice; ``meta.json``, written last, without which nothing else counts; ``used``,
    whose time of change is the time of the last use; and ``claims/`` with a lock file per slice that is being made.

    A slice counts as done only when its record says so, the record is written after the bytes have reached the disk,
    and it carries their checksum: what a killed process or a bad disk leaves behind is found out and made again.

    Made by :meth:`EmbeddingStore.open`. ``identity`` is what ``meta.json`` says of the volume and must be JSON;
    ``reserve(bytes)`` makes room in the store before the files are made and answers whether there is any.
    """

    def __init__(
        self, folder: Path, *, count: int, identity: dict[str, Any], lock: FileLock, reserve: Callable[[int], bool]
    ) -> None:
        self.folder = folder
        self.count = count
        self._identity = identity
        self._lock = lock
        self._reserve = reserve
        self._layout: Layout | None = None
        self._claims: dict[int, FileLock] = {}
        self._refused = False
        self._used = 0.0

    @property
    def done(self) -> np.ndarray:
        """(count,) bool: which slices are stored."""
        if self._known_layout() is None:
            return np.zeros(self.count, dtype=bool)
        return self._records()["done"] == DONE

    def read(self, index: int) -> Fp16Embedding | None:
        """A slice, or None when it is not stored. A damaged one is reported, forgotten, and None."""
        layout = self._known_layout()
        if layout is None:
            return None
        record = self._records()[index]
        if record["done"] != DONE:
            return None
        try:
            pieces = {}
            for name, tensor in layout.items():
                with (self.folder / f"{name}.npy").open("rb") as stream:
                    stream.seek(tensor.start(index))
                    pieces[name] = stream.read(tensor.slice_bytes)
        except OSError as error:
            logger.warning("cannot read the embedding of slice %d in %s: %s", index, self.folder, error)
            return None
        if _checksum(index, pieces) != record["checksum"]:
            logger.warning(
                "the stored embedding of slice %d in %s is damaged and will be made again", index, self.folder
            )
            try:
                self._record(index, np.zeros((), RECORD))
            except OSError as error:
                logger.debug("cannot mark slice %d in %s as damaged: %s", index, self.folder, error)
            return None
        self._touch()
        return {name: np.frombuffer(pieces[name], "<f2").reshape(layout[name].shape).copy() for name in layout}

    def write(self, indices: Sequence[int], halves: Sequence[Fp16Embedding]) -> bool:
        """Store slices.

        Args:
            indices: Their numbers.
            halves: Their embeddings, in the same order.

        Returns:
            False when the disk or the quota has no room or the folder cannot be written. That is logged once; the
            volume's embeddings then live in memory only, until the store is opened anew.
        """
        if self._refused:
            return False
        try:
            for _ in range(2):  # again, when another process has just removed this volume to make room
                try:
                    return self._write(indices, halves)
                except FileNotFoundError:
                    self._layout = None
            return False
        except OSError as error:
            return self._refuse(f"{error}; free some space or choose another folder")

    def claim(self, index: int, *, timeout: float = 0.0) -> bool:
        """Reserve the making of a slice for this process. A process's end frees it.

        Args:
            index: The slice.
            timeout: Seconds to wait for another process.

        Returns:
            False while another process has it. True without a claim where none can be made (a read-only store): two
            processes may then do the same work, which is wasteful but not wrong.
        """
        claims = self.folder / "claims"
        try:
            claims.mkdir(parents=True, exist_ok=True)
            lock = FileLock(claims / f"{index:05d}.lock", timeout=timeout, thread_local=False)
            lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            logger.debug("no claim on slice %d in %s: %s", index, self.folder, error)
            return True
        self._claims[index] = lock
        return True

    def release(self, index: int) -> None:
        """Give the claim on a slice back, if there is one."""
        lock = self._claims.pop(index, None)
        if lock is not None:
            lock.release()

    # how it lies on the disk

    def _known_layout(self) -> Layout | None:
        """From memory or from the disk; None when the volume is not there, not whole, or of another identity."""
        if self._layout is None:
            try:
                meta = json.loads((self.folder / "meta.json").read_text())
                layout = {name: Tensor(tuple(shape), offset) for name, (shape, offset) in meta["tensors"].items()}
                sizes = [(self.folder / f"{name}.npy").stat().st_size for name in layout]
                whole = sizes == [tensor.start(self.count) for tensor in layout.values()]
                if whole and meta["identity"] == self._identity:
                    self._layout = layout
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent or damaged: as if not there
                return None
        return self._layout

    def _records(self) -> np.ndarray:
        try:
            records = np.fromfile(self.folder / "slices.bin", RECORD)
        except OSError:
            records = np.zeros(0, RECORD)
        return records if len(records) == self.count else np.zeros(self.count, RECORD)

    def _write(self, indices: Sequence[int], halves: Sequence[Fp16Embedding]) -> bool:
        layout = self._known_layout()
        if layout is None or not _fits(halves[0], layout):
            layout = self._create(halves[0])
        if layout is None:
            return self._refuse("it is larger than what the quota leaves")
        for name, tensor in layout.items():
            with (self.folder / f"{name}.npy").open("r+b") as stream:
                for index, half in zip(indices, halves, strict=True):
                    stream.seek(tensor.start(index))
                    stream.write(_bytes(half[name]))
                stream.flush()
                os.fsync(stream.fileno())
        for index, half in zip(indices, halves, strict=True):
            checksum = _checksum(index, {name: _bytes(half[name]) for name in layout})
            self._record(index, np.array((DONE, checksum), RECORD))
        self._touch()
        if self.done.all():
            shutil.rmtree(self.folder / "claims", ignore_errors=True)
        return True

    def _create(self, half: Fp16Embedding) -> Layout | None:
        """Make the files, unless another process just did. None when there is no room for them."""
        with self._lock:
            self._layout = None
            layout = self._known_layout()
            if layout is not None and _fits(half, layout):
                return layout
            if not self._reserve(self.count * sum(array.nbytes for array in half.values())):
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "meta.json").unlink(missing_ok=True)
            layout = {name: self._create_tensor(name, array.shape) for name, array in half.items()}
            np.zeros(self.count, RECORD).tofile(self.folder / "slices.bin")
            (self.folder / "used").touch()
            tensors = {name: (tensor.shape, tensor.offset) for name, tensor in layout.items()}
            with whole_file(self.folder / "meta.json") as partial:
                partial.write_text(json.dumps({"identity": self._identity, "tensors": tensors}, indent=1))
            self._layout = layout
            return layout

    def _create_tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        header = {"descr": "<f2", "fortran_order": False, "shape": (self.count, *shape)}
        with (self.folder / f"{name}.npy").open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            tensor = Tensor(shape, stream.tell())
            stream.truncate(tensor.start(self.count))
        return tensor

    def _record(self, index: int, record: np.ndarray) -> None:
        with (self.folder / "slices.bin").open("r+b") as stream:
            stream.seek(index * RECORD.itemsize)
            stream.write(record.tobytes())

    def _touch(self) -> None:
        now = time.monotonic()
        if now - self._used > USED_SECONDS or not self._used:
            try:
                (self.folder / "used").touch()
            except OSError as error:  # a store that may only be read
                logger.debug("cannot note the use of %s: %s", self.folder, error)
            self._used = now

    def _refuse(self, reason: str) -> bool:
        self._refused = True
        logger.warning("embeddings of this volume are kept in memory only, not in %s: %s", self.folder, reason)
        return False


def _fits(half: Fp16Embedding, layout: Layout) -> bool:
    return {name: array.shape for name, array in half.items()} == {name: layout[name].shape for name in layout}


def _bytes(array: np.ndarray) -> bytes:
    return array.astype("<f2", copy=False).tobytes()


def _checksum(index: int, pieces: dict[str, bytes]) -> int:
    """Over all tensors of a slice, and over which slice it is."""
    checksum = zlib.crc32(str(index).encode())
    for name in sorted(pieces):
        checksum = zlib.crc32(pieces[name], checksum)
    return checksum


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

        Args:
            key: Everything that changes the embeddings.
            grid: Of the volume, for people who look into the store.
            count: How many slices it has.

        Returns:
            The same object for the same key while somebody holds it; a volume that is held is never removed.
        """
        with self._opening:
            stored = self._open.get(key.digest)
            if stored is None:
                stored = self._open[key.digest] = StoredVolume(
                    self._folder(key.digest),
                    count=count,
                    identity={
                        "format": FORMAT,
                        "key": asdict(key) | {"layers": list(key.layers)},
                        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
                        "count": count,
                    },
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


RECIPES: dict[str, type[IntensityRecipe]] = {recipe.name: recipe for recipe in (CtWindow, MrPercentiles)}


READER = 3
"""Counts the changes of how files are read: what an older reader found of a source, its grid for one, counts no more.
2: the place of a NIfTI file in the patient is the one that ITK reads.
3: DICOM padding is no tissue, MONOCHROME1 inverts nothing."""


@dataclass(frozen=True, eq=False)
class Known:
    """Of a source that was read before: what an embedding's key and a viewer's answer need."""

    pixel_digest: str
    grid: Grid
    recipe: IntensityRecipe
    """The default recipe of the volume."""


class Catalogue:
    """One small JSON file per state of a source under ``root``. A changed source is a new one.

    Several processes may use it at once. Losing it costs one reading of each source.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, source: Path | str) -> Known | None:
        """What is known of the source as it is now; None when nothing is. Raises FileNotFoundError if it is gone."""
        file = self.root / f"{fingerprint(source)}.json"
        try:
            fields = json.loads(file.read_text())
            grid = Grid(tuple(fields["shape"]), np.array(fields["affine"]))
            recipe = RECIPES[fields["recipe"]](**fields["settings"])
            return Known(fields["pixel_digest"], grid, recipe)
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # unknown, half-written, or of another version
            return None

    def add(self, source: Path | str, *, volume: Volume, recipe: IntensityRecipe, fingerprint: str) -> None:
        """Remember what a source held. ``fingerprint`` must be from before it was read, in case it just changed."""
        file = self.root / f"{fingerprint}.json"
        fields = {
            "source": str(source),
            "pixel_digest": volume.digest,
            "shape": list(volume.shape),
            "affine": volume.affine.tolist(),
            "modality": volume.modality,
            "recipe": recipe.name,
            "settings": asdict(recipe),
        }
        try:
            with whole_file(file) as partial:
                partial.write_text(json.dumps(fields, indent=1))
        except OSError as error:  # only costs time
            logger.warning("cannot remember what %s holds in %s: %s", source, self.root, error)


def fingerprint(source: Path | str) -> str:
    """sha256 over :data:`READER` and the path, size and time of change of a file, or of every file of a folder.

    Raises FileNotFoundError when there is no such file or folder.
    """
    source = Path(source).resolve()
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    sha = hashlib.sha256(f"reader {READER}".encode())
    for path in files:
        status = path.stat()
        sha.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return sha.hexdigest()
