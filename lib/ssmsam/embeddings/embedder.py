"""The embeddings of one volume in one plane."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import nn

from ssmsam.cache import Cache
from ssmsam.embeddings.store import Catalogue, EmbeddingKey, EmbeddingStore, Fp16Embedding, fingerprint
from ssmsam.models.encoder import Embedding, Encoder, use_bfloat16
from ssmsam.models.frame import Frame, Window
from ssmsam.progress import PATIENCE_S, PriorityLock, Progress, is_urgent, result_of, silent, stop_if_cancelled
from ssmsam.reading import read_volume
from ssmsam.volume.body import body_centres
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.geometry import STORED_SLICES, Plane
from ssmsam.volume.intensity import IntensityRecipe, Scale, recipe_for
from ssmsam.volume.volume import Grid, Volume

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""How often what another process makes is looked for: a *guess*."""


@dataclass(eq=False)
class _InFlight:
    """A slice that is being made. Once somebody waits for it with urgency, so is its making."""

    half: Future[Fp16Embedding | None] = field(default_factory=Future)
    urgent: bool = False


class VolumeEmbeddings:
    """Embeddings by slice index. Made by :meth:`Embedder.open`; safe for many threads.

    Values pass through float16 whether or not they come from the disk, so that the answer to a prompt does not depend
    on where its embedding came from.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        grid: Grid,
        load: Callable[[], Volume],
        recipe: IntensityRecipe,
        plane: Plane,
        key: EmbeddingKey,
        part: tuple[VolumeEmbeddings, Window] | None = None,
    ) -> None:
        """``load()`` gives the volume, and is called when a slice must be encoded for the first time. ``part``: these
        are embeddings of a window of another one's slices."""
        self.plane = plane
        self.recipe = recipe
        self.key = key
        self.grid = grid
        self.count = plane.count(grid)
        height, width = plane.slice_shape(grid)
        self._backwards, *mirrored = plane.mirrored(grid)
        size = embedder.encoder.spec.input_size
        self.frame = Frame(height, width, size, plane.pixel_mm(grid), (mirrored[0], mirrored[1]), part and part[1])
        self._whole = part and part[0]
        self._embedder = embedder
        self._load = load
        store = None if part else embedder.store
        self._stored = store.open(key, grid=grid, count=self.count) if store else None
        self._in_flight: dict[int, _InFlight] = {}
        self._in_flight_lock = threading.Lock()

    @property
    def slice_mm(self) -> float:
        """Millimetres between neighbouring slices."""
        return self.plane.slice_mm(self.grid)

    def position_mm(self, index: int) -> float:
        """Where a slice is along the volume, from its first slice in the direction in which slices are shown: it grows
        the same way through every body, however the volume is stored."""
        return (self.count - 1 - index if self._backwards else index) * self.slice_mm

    def index_at(self, position_mm: float) -> int:
        """The slice at a position of :meth:`position_mm`."""
        index = round(position_mm / self.slice_mm)
        return self.count - 1 - index if self._backwards else index

    @cached_property
    def volume(self) -> Volume:
        """The voxels: read now, if they were not needed before."""
        return self._load()

    def within(self, window: Window) -> VolumeEmbeddings:
        """The same slices in a window, enlarged to the encoder's input. They are kept in memory only: windows move with
        what is annotated."""
        return self._embedder.opened(
            self.key.pixel_digest,
            grid=self.grid,
            load=lambda: self.volume,
            recipe=self.recipe,
            plane=self.plane,
            part=(self, window),
        )

    def derived(self, what: Hashable, make: Callable[[], Sized]) -> Any:
        """Something that depends on nothing but this volume and ``what``, made unless it is remembered."""
        return self._embedder.derived.recalled((self.key.digest, what), make)

    @cached_property
    def scale(self) -> Scale:
        """The intensities that become 0 and 1, one pair for the whole volume."""
        return self._whole.scale if self._whole else self.recipe.scale(self.volume)

    @cached_property
    def body_centres(self) -> np.ndarray:
        """(count, 2): where the body's centre is on every slice, as (x, y) in input pixels. Reads the voxels.

        In a window the body cannot be told: places there are relative to the window.
        """
        if self.frame.window:
            rows, columns = self.frame.resized
            return np.tile([(columns - 1) / 2, (rows - 1) / 2], (self.count, 1))
        return body_centres(lambda index: self.inputs([index])[0, 1].numpy(), self.count, self.slice_mm)

    @property
    def done(self) -> np.ndarray:
        """(count,) bool: the slices that need no encoder any more."""
        memory, digest = self._embedder.memory, self.key.digest
        in_memory = np.array([(digest, index) in memory for index in range(self.count)], dtype=bool)
        return in_memory | self._stored.done if self._stored else in_memory

    def slice(self, index: int) -> Embedding:
        """One slice: a batch of 1, float32, on the encoder's device. Goes before long work that waits for the encoder,
        unless this is long work too.

        Args:
            index: Its number along the plane, from 0.

        Raises:
            ValueError: An index outside the volume.
        """
        return self._embedder.embedding_of(self.half(index))

    def batch(self, indices: Iterable[int]) -> Embedding:
        """Several slices as one batch."""
        return stacked([self.slice(index) for index in indices])

    def half(self, index: int) -> Fp16Embedding:
        """The same as it is kept: float16, on the CPU."""
        index = self._checked(index)
        half = self._embedder.memory.get((self.key.digest, index))
        while half is None:
            in_flight, mine = self._acquire(index)
            in_flight.urgent |= is_urgent()
            if not mine:
                half = result_of(in_flight.half)  # None when the other thread failed: then it is this one's turn
                continue
            try:
                half = self._make(index)
            finally:
                self._complete(index, half)
        return half

    def embed(self, indices: Iterable[int] | None = None, *, progress: Progress = silent) -> None:
        """Make embeddings that are not there yet, in small batches.

        Slices that another thread or process is making are left to it and waited for.

        Args:
            indices: Numbers of slices, in the order wanted; all by default.
            progress: ``progress("embed", done, total)``; raising :class:`Cancelled` in it stops between two batches.
                Finished slices stay.

        Raises:
            ValueError: An index outside the volume.
        """
        wanted = [self._checked(index) for index in dict.fromkeys(range(self.count) if indices is None else indices)]
        made: set[int] = set()
        while True:
            done = self.done
            pending = [index for index in wanted if not done[index] and index not in made]
            progress("embed", len(wanted) - len(pending), len(wanted))
            if not pending:
                return
            batch = self._take(pending)
            if batch:
                self._make_batch(batch)
                made.update(batch)
            else:
                time.sleep(POLL_SECONDS)
                stop_if_cancelled()

    @property
    def batch_size(self) -> int:
        """As :attr:`Embedder.batch_size`."""
        return self._embedder.batch_size

    def inputs(self, indices: list[int]) -> torch.Tensor:
        """What the encoder sees of these slices: (B, 3, size, size) in [0, 1].

        The three channels are the slice, or with its neighbours where the encoder reads them; the first and the last
        slice of the volume stand in for neighbours beyond them.
        """
        context = self._embedder.encoder.spec.context
        offsets = (-context, 0, context) if context else (0,)
        if self._backwards:
            offsets = offsets[::-1]
        near = np.clip(np.add.outer(indices, offsets), 0, self.count - 1)
        pixels = self.scale.apply(self.plane.stack(self.volume.array)[near])
        return self.frame.to_input(torch.from_numpy(pixels)).expand(-1, 3, -1, -1)

    # one slice

    def _make(self, index: int) -> Fp16Embedding:
        """Through the encoder, unless another thread or process has just done it."""
        half = self._known(index)
        if half is not None:
            return half
        if self._stored:
            self._stored.claim(index, timeout=self._embedder.patience)
        try:
            half = self._known(index)
            if half is None:
                half = self._encoded([index])[0]
                self._keep([index], [half])
            return half
        finally:
            if self._stored:
                self._stored.release(index)

    def _known(self, index: int) -> Fp16Embedding | None:
        """From memory or from the disk."""
        half = self._embedder.memory.get((self.key.digest, index))
        if half is None and self._stored:
            half = self._stored.read(index)
            if half is not None:
                half = self._embedder.restored(half, lambda: self.inputs([index]))
                self._embedder.memory.put((self.key.digest, index), half)
        return half

    # many slices, in the background

    def _take(self, pending: list[int]) -> list[int]:
        """The next slices to make that neither another thread nor another process is making; to be completed."""
        taken: list[int] = []
        for index in pending:
            if len(taken) == self._embedder.batch_size:
                break
            if not self._acquire(index)[1]:
                continue
            if self._stored and not self._stored.claim(index):
                self._complete(index, None)
            else:
                taken.append(index)
        return taken

    def _make_batch(self, batch: list[int]) -> None:
        halves: dict[int, Fp16Embedding] = {}
        try:
            done = self.done  # another process may have made some between our look and our claim
            missing = [index for index in batch if not done[index]]
            if missing:
                made = self._encoded(missing)
                halves = dict(zip(missing, made, strict=True))
                self._keep(missing, made)
        finally:
            for index in batch:
                if self._stored:
                    self._stored.release(index)
                self._complete(index, halves.get(index))

    def _keep(self, indices: list[int], halves: list[Fp16Embedding]) -> None:
        if self._stored:
            self._stored.write(indices, [self._embedder.storable(half) for half in halves])
        for index, half in zip(indices, halves, strict=True):
            self._embedder.memory.put((self.key.digest, index), half)

    # which slices this process is making right now

    def _acquire(self, index: int) -> tuple[_InFlight, bool]:
        """The making of a slice, and whether it falls to the caller, who then must :meth:`_complete` it."""
        with self._in_flight_lock:
            mine = index not in self._in_flight
            in_flight = self._in_flight.setdefault(index, _InFlight())
            return in_flight, mine

    def _encoded(self, indices: list[int]) -> list[Fp16Embedding]:
        """Slices that were acquired, through the encoder: with urgency from when somebody waits so for one of them."""
        in_flight = [self._in_flight[index] for index in indices]
        return self._embedder.encode(self.inputs(indices), urgent=lambda: any(one.urgent for one in in_flight))

    def _complete(self, index: int, half: Fp16Embedding | None) -> None:
        with self._in_flight_lock:
            in_flight = self._in_flight.pop(index)
        in_flight.half.set_result(half)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise ValueError(f"slice {index} is not in this volume: it has {self.count} slices in this plane")
        return int(index)


DEFAULT_MEMORY_BYTES = 2**30
BATCH_SECONDS = 0.5
"""How long a background batch may keep a user's click waiting, where a single slice takes less."""
LARGEST_BATCH = 16
PATIENT_SLICES = 4
"""As long as so many slices take, long work lets clicks go before it at the encoder, again and again: a guess. Among
clicks without end every fifth slice is for it."""
DERIVED_BYTES = 64 * 2**20
"""A guess: a registration of two volumes takes a few MB."""


class Sized(Protocol):
    """What is derived from a volume and remembered."""

    @property
    def nbytes(self) -> int: ...


class Embedder:
    """Owns one encoder and hands out embeddings of volumes. Safe for many threads.

    ``store`` keeps embeddings on disk; without one they live in memory only. ``memory_bytes`` bounds what is kept in
    memory over all volumes, the least recently used slices going first. ``bfloat16`` computes in half the precision:
    about twice as fast where the processor has such instructions, and slower elsewhere; None leaves that to
    :func:`ssmsam.models.encoder.use_bfloat16`. ``encoded`` counts the slices that went through the encoder.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        store: EmbeddingStore | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        bfloat16: bool | None = None,
    ) -> None:
        self.encoder = encoder
        self.bfloat16 = use_bfloat16(encoder.spec, self.device) if bfloat16 is None else bfloat16
        self.store = store
        self.memory: Cache[tuple[str, int], Fp16Embedding] = Cache(memory_bytes, size=half_bytes)
        """Slices by the digest of the volume's key and their number."""
        self.derived: Cache[tuple[str, Hashable], Sized] = Cache(
            DERIVED_BYTES, size=lambda one: one.nbytes, keep_newest=True
        )
        """What was made of volumes, by the digest of the volume's key and what it is."""
        self.encoded = 0
        self._gate = PriorityLock()
        self._seconds: float | None = None
        self._open: WeakValueDictionary[str, VolumeEmbeddings] = WeakValueDictionary()
        self._opening = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the encoder is, and where embeddings are handed out."""
        return next((tensor.device for tensor in self.encoder.parameters()), torch.device("cpu"))

    @property
    def batch_size(self) -> int:
        """Slices of a background batch: about :data:`BATCH_SECONDS` of work, by the last slice's time."""
        if self._seconds is None:
            return 1
        return max(1, min(LARGEST_BATCH, int(BATCH_SECONDS / max(self._seconds, 1e-6))))

    @property
    def patience(self) -> float:
        """Seconds to wait for a slice that another process is making, before making it here too."""
        return 30.0 if self._seconds is None else 2.0 + 4 * self._seconds

    def open(
        self, volume: Volume, *, recipe: IntensityRecipe | None = None, plane: Plane = STORED_SLICES
    ) -> VolumeEmbeddings:
        """The embeddings of a volume, made slice by slice when they are needed.

        Args:
            volume: (slices, rows, columns).
            recipe: How its intensities become [0, 1], :func:`recipe_for` the volume by default.
            plane: The axis that slices are taken along.

        Returns:
            The same object for equal volume, recipe and plane, as long as somebody holds it.

        Example:
            >>> import numpy as np
            >>> from ssmsam import as_volume
            >>> from ssmsam.models.registry import load_encoder
            >>> embedder = Embedder(encoder=load_encoder("small"))
            >>> opened = embedder.open(as_volume(np.zeros((4, 32, 40), "int16"), affine=np.eye(4)))
            >>> tuple(opened.slice(2)["image"].shape), opened.done.tolist()
            ((1, 128, 32, 32), [False, False, True, False])
        """
        recipe = recipe or recipe_for(volume)
        return self.opened(volume.digest, grid=volume.grid, load=lambda: volume, recipe=recipe, plane=plane)

    def open_source(
        self, source: Path | str, *, recipe: IntensityRecipe | None = None, plane: Plane = STORED_SLICES
    ) -> VolumeEmbeddings:
        """The same for a file or a DICOM folder, whose pixels are read only when a slice has to be encoded.

        That holds once a source has been opened before and as long as none of its files changes; the embedder needs
        a store for it.

        Raises:
            FileNotFoundError: There is no such file or folder.
            UnreadableVolume: As :func:`read_volume` does.
        """
        catalogue = Catalogue(self.store.root / "catalogue") if self.store else None
        known = catalogue.find(source) if catalogue else None
        if known is not None:
            load = partial(_read_again, Path(source), known.pixel_digest)
            recipe = recipe or known.recipe
            return self.opened(known.pixel_digest, grid=known.grid, load=load, recipe=recipe, plane=plane)
        before = fingerprint(source)
        volume = read_volume(source)
        if catalogue:
            catalogue.add(source, volume=volume, recipe=recipe_for(volume), fingerprint=before)
        return self.open(volume, recipe=recipe, plane=plane)

    def opened(
        self,
        digest: str,
        *,
        grid: Grid,
        load: Callable[[], Volume],
        recipe: IntensityRecipe,
        plane: Plane,
        part: tuple[VolumeEmbeddings, Window] | None = None,
    ) -> VolumeEmbeddings:
        """Those of voxels with a digest, made from what ``load`` gives, or those that somebody holds already."""
        key = EmbeddingKey.of(
            self.encoder,
            pixel_digest=digest,
            plane=plane,
            recipe_digest=recipe.digest,
            bfloat16=self.bfloat16,
            window=part[1] if part else None,
        )
        with self._opening:
            opened = self._open.get(key.digest)
            if opened is None:
                opened = VolumeEmbeddings(
                    embedder=self, grid=grid, load=load, recipe=recipe, plane=plane, key=key, part=part
                )
                self._open[key.digest] = opened
            return opened

    def encode(self, slices: torch.Tensor, *, urgent: Callable[[], bool] | None = None) -> list[Fp16Embedding]:
        """Send slices through the encoder.

        Args:
            slices: (B, 3, size, size) in [0, 1].
            urgent: Whether somebody waits for them, by default unless this is long work. While it is so they go before
                what is not, which waits between two blocks of the encoder.

        Returns:
            B slices as they are kept: float16, on the CPU.

        Raises:
            Cancelled: Between two blocks, where the work was cancelled.
            ValueError: The encoder's answer is not finite.
        """
        usual = is_urgent()
        urgent = urgent or (lambda: usual)
        patience = max(PATIENCE_S, PATIENT_SLICES * (self._seconds or 0.0))
        with (
            self._gate.hold(urgent=urgent, patience=patience),
            self._interruptible(urgent, patience) as passing,
            torch.inference_mode(),
        ):
            start = time.perf_counter()
            inputs = slices.to(self.device)
            if self.bfloat16:  # convolutions in this order are faster still
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                embedding = self.encoder.encode(inputs)
            halves = to_halves(self.encoder.compress(embedding))
            self._seconds = (time.perf_counter() - start - sum(passing)) / len(slices)
            self.encoded += len(slices)
        return halves

    @contextmanager
    def _interruptible(self, urgent: Callable[[], bool], patience: float) -> Iterator[list[float]]:
        """Urgent work passes before every block that this thread runs, unless this is ``urgent`` or has waited long
        enough; the seconds of each. Between two blocks the work may be cancelled."""
        passing: list[float] = []
        mine = threading.get_ident()

        def before_block(*_: object) -> None:
            if threading.get_ident() != mine:
                return
            stop_if_cancelled()
            passing.append(self._gate.let_pass(urgent=urgent, patience=patience - sum(passing)))

        lists = (module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        hooks = [block.register_forward_pre_hook(before_block) for blocks in lists for block in blocks]
        try:
            yield passing
        finally:
            for hook in hooks:
                hook.remove()

    def storable(self, half: Fp16Embedding) -> Fp16Embedding:
        """What of a slice is kept on disk."""
        levels = len(half) - 1 - self.encoder.spec.remade
        return {"image": half["image"]} | {f"level{i}": half[f"level{i}"] for i in range(levels)}

    def restored(self, stored: Fp16Embedding, inputs: Callable[[], torch.Tensor]) -> Fp16Embedding:
        """A slice again from what :meth:`storable` left of it; ``inputs()`` gives what the encoder sees of it."""
        if not self.encoder.spec.remade:
            return stored
        with torch.inference_mode():
            more = self.encoder.remake(inputs().to(self.device))
        names = [f"level{len(stored) - 1 + i}" for i in range(len(more))]
        return stored | {name: _to_half(name, level)[0] for name, level in zip(names, more, strict=True)}

    def embedding_of(self, half: Fp16Embedding) -> Embedding:
        """What decoders read of a slice that :meth:`encode` made: a batch of 1, float32, on the encoder's device."""
        names = ["image", *(f"level{i}" for i in range(len(half) - 1))]
        with torch.no_grad():
            tensors = [torch.from_numpy(half[name]).to(self.device, torch.float32)[None] for name in names]
            return self.encoder.expand({"image": tensors[0], "levels": tensors[1:]})


def slice_descriptors(images: torch.Tensor) -> torch.Tensor:
    """Mean embedding of slices (N, D, h, w), centred by cell and of unit length: (N, D)."""
    mean = images.mean((2, 3))
    return torch.nn.functional.normalize(mean - mean.mean(1, keepdim=True), dim=1)


LARGEST_HALF = float(np.finfo(np.float16).max)


def to_halves(embedding: Embedding) -> list[Fp16Embedding]:
    """A batch of B -> B slices.

    Values beyond +-65504, the range of float16, are cut to it with a warning: no encoder here comes near. Raises
    ValueError for infinities and not-a-number, which mean that weights or input are broken.
    """
    tensors = {"image": embedding["image"]} | {f"level{i}": level for i, level in enumerate(embedding["levels"])}
    arrays = {name: _to_half(name, tensor) for name, tensor in tensors.items()}
    # copies, for a view would keep the whole batch in memory
    return [{name: array[i].copy() for name, array in arrays.items()} for i in range(len(embedding["image"]))]


def half_bytes(half: Fp16Embedding) -> int:
    """Bytes that a slice takes."""
    return sum(array.nbytes for array in half.values())


def _to_half(name: str, tensor: torch.Tensor) -> np.ndarray:
    largest = float(tensor.abs().max())
    if not np.isfinite(largest):
        raise ValueError(f"the encoder gave infinite or not-a-number values in {name}: are its weights whole?")
    if largest > LARGEST_HALF:
        logger.warning("embedding %s reaches %g: cut to the float16 range of %g", name, largest, LARGEST_HALF)
        tensor = tensor.clamp(-LARGEST_HALF, LARGEST_HALF)
    return tensor.to("cpu", torch.float16).contiguous().numpy()


def stacked(embeddings: Sequence[Embedding]) -> Embedding:
    """Several batches as one."""
    levels = zip(*(one["levels"] for one in embeddings), strict=True)
    return {
        "image": torch.cat([one["image"] for one in embeddings]),
        "levels": [torch.cat(level) for level in levels],
    }


def _read_again(source: Path, digest: str) -> Volume:
    volume = read_volume(source)
    if volume.digest != digest:
        raise UnreadableVolume(f"{source} has changed while it was in use: open it again")
    return volume


def nearest_first(index: int, count: int) -> list[int]:
    """All slice indices of a volume of ``count`` slices, by distance from ``index``."""
    if not 0 <= index < count:
        raise ValueError(f"slice {index} is not in a volume of {count} slices")
    pairs = ((index - distance, index + distance) for distance in range(1, count))
    return [index, *(near for near in chain.from_iterable(pairs) if 0 <= near < count)]
