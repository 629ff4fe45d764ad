"""From volumes to embeddings: in memory, else on disk, else through the encoder, and never twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import nn

from ssmsam.cache import Cache
from ssmsam.encoders.catalogue import Catalogue, fingerprint
from ssmsam.encoders.encoder import Embedding, Encoder
from ssmsam.encoders.frame import Window
from ssmsam.encoders.gate import Gate
from ssmsam.encoders.half import Half, to_embedding, to_halves, with_more, without_last
from ssmsam.encoders.memory import SliceMemory
from ssmsam.encoders.precision import use_bfloat16
from ssmsam.encoders.store import EmbeddingKey, EmbeddingStore
from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.imaging.plane import Plane
from ssmsam.imaging.reading import read_volume
from ssmsam.imaging.recipe import IntensityRecipe, recipe_for
from ssmsam.imaging.unreadable import UnreadableVolume
from ssmsam.imaging.volume import Grid, Volume
from ssmsam.progress import stop_if_cancelled

STORED_SLICES = Plane(0)
DEFAULT_MEMORY_BYTES = 2**30
BATCH_SECONDS = 0.5
"""How long a background batch may keep a user's click waiting, where a single slice takes less."""
LARGEST_BATCH = 16
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
    :func:`ssmsam.encoders.precision.use_bfloat16`. ``encoded`` counts the slices that went through the encoder.
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
        self.memory = SliceMemory(memory_bytes)
        self.derived: Cache[tuple[str, Hashable], Sized] = Cache(
            DERIVED_BYTES, size=lambda one: one.nbytes, keep_newest=True
        )
        """What was made of volumes, by the digest of the volume's key and what it is."""
        self.encoded = 0
        self._gate = Gate()
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
        """The embeddings of a volume, made slice by slice when they are asked for.

        ``recipe`` is :func:`recipe_for` the volume by default. Equal volume, recipe and plane give the same object.
        """
        recipe = recipe or recipe_for(volume)
        return self._opened(volume.digest, grid=volume.grid, load=lambda: volume, recipe=recipe, plane=plane)

    def open_source(
        self, source: Path | str, *, recipe: IntensityRecipe | None = None, plane: Plane = STORED_SLICES
    ) -> VolumeEmbeddings:
        """The same for a file or a DICOM folder, whose pixels are read only when a slice has to be encoded.

        That holds once a source has been opened before and as long as none of its files changes; the embedder needs
        a store for it. Raises FileNotFoundError, and UnreadableVolume of :func:`read_volume`.
        """
        catalogue = Catalogue(self.store.root / "catalogue") if self.store else None
        known = catalogue.find(source) if catalogue else None
        if known is not None:
            load = partial(_read_again, Path(source), known.pixel_digest)
            recipe = recipe or known.recipe
            return self._opened(known.pixel_digest, grid=known.grid, load=load, recipe=recipe, plane=plane)
        before = fingerprint(source)
        volume = read_volume(source)
        if catalogue:
            catalogue.add(source, volume=volume, recipe=recipe_for(volume), fingerprint=before)
        return self.open(volume, recipe=recipe, plane=plane)

    def open_window(self, whole: VolumeEmbeddings, window: Window) -> VolumeEmbeddings:
        """The embeddings of a window of every slice, enlarged to the encoder's input. They are kept in memory only:
        windows move with what is annotated."""
        return self._opened(
            whole.key.pixel_digest,
            grid=whole.grid,
            load=lambda: whole.volume,
            recipe=whole.recipe,
            plane=whole.plane,
            part=(whole, window),
        )

    def _opened(
        self,
        digest: str,
        *,
        grid: Grid,
        load: Callable[[], Volume],
        recipe: IntensityRecipe,
        plane: Plane,
        part: tuple[VolumeEmbeddings, Window] | None = None,
    ) -> VolumeEmbeddings:
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

    def encode(self, slices: torch.Tensor, *, urgent: bool) -> list[Half]:
        """Encoder inputs (B, 3, size, size) in [0, 1] -> B slices. ``urgent`` goes before background work, which waits
        between two blocks of the encoder. Raises :class:`~ssmsam.progress.Cancelled` between two blocks."""
        with self._gate.hold(urgent=urgent), self._interruptible(not urgent) as passing, torch.inference_mode():
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
    def _interruptible(self, may: bool) -> Iterator[list[float]]:
        """Where it ``may``, urgent work passes before every block that this thread runs; the seconds of each. Between
        two blocks the work may be cancelled."""
        passing: list[float] = []
        mine = threading.get_ident()

        def before_block(*_: object) -> None:
            if threading.get_ident() != mine:
                return
            stop_if_cancelled()
            if may:
                passing.append(self._gate.let_pass())

        lists = (module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        hooks = [block.register_forward_pre_hook(before_block) for blocks in lists for block in blocks]
        try:
            yield passing
        finally:
            for hook in hooks:
                hook.remove()

    def storable(self, half: Half) -> Half:
        """What of a slice is kept on disk."""
        return without_last(half, self.encoder.spec.remade)

    def completed(self, stored: Half, inputs: Callable[[], torch.Tensor]) -> Half:
        """A slice again from what :meth:`storable` left of it; ``inputs()`` gives what the encoder sees of it."""
        if not self.encoder.spec.remade:
            return stored
        with torch.inference_mode():
            return with_more(stored, self.encoder.remake(inputs().to(self.device)))

    def embedding_of(self, half: Half) -> Embedding:
        """What decoders read of a slice that :meth:`encode` made: a batch of 1, float32, on the encoder's device."""
        with torch.no_grad():
            return self.encoder.expand(to_embedding(half, self.device))


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
