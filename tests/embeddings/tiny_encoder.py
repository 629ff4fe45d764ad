"""A real encoder, small enough for tests that count, interrupt and race. Child processes import it as well."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.volume.volume import Volume

SPEC = EncoderSpec("tiny", 32, 4, 8, level_strides=(2,), level_channels=(4,), context=1, licence="Apache-2.0")


class TinyEncoder(Encoder):
    """Two strided convolutions with seeded weights. ``seconds`` is slept for every slice."""

    spec = SPEC

    def __init__(self, *, seconds: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fine = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.weights_sha256 = f"tiny{seed}"
        self.seconds = seconds
        self.batches: list[int] = []
        self.running = 0
        self.overlapped = False

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.running += 1
        self.overlapped |= self.running > 1
        time.sleep(self.seconds * len(slices))
        self.batches.append(len(slices))
        fine = torch.relu(self.fine(slices))
        self.running -= 1
        return {"image": self.coarse(fine), "levels": [fine]}


class BlockEncoder(TinyEncoder):
    """In twenty blocks that take 30 ms each. ``began`` is set once one has been run."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(20))
        self.began = threading.Event()

    def encode(self, slices: torch.Tensor) -> Embedding:
        for block in self.blocks:
            block(slices)
            self.began.set()
            time.sleep(0.03)
        return super().encode(slices)


def a_volume(*, slices: int = 12, seed: int = 0) -> Volume:
    """CT-like noise, slices distinct from each other."""
    array = np.random.default_rng(seed).integers(-200, 300, (slices, 20, 28)).astype(np.int16)
    return Volume(array, np.diag([-1.0, 1.0, 3.0, 1.0]), modality="CT")


def main() -> None:
    """A process that embeds the whole volume into the store at argv[1], sleeping argv[2] seconds per slice."""
    from ssmsam.embeddings.embedder import Embedder
    from ssmsam.embeddings.store import EmbeddingStore

    embedder = Embedder(
        encoder=TinyEncoder(seconds=float(sys.argv[2])), store=EmbeddingStore(Path(sys.argv[1])), memory_bytes=0
    )
    embedder.open(a_volume()).embed(progress=lambda phase, done, total: print(done, flush=True))
    print("encoded", embedder.encoded, flush=True)


if __name__ == "__main__":
    main()


class RemakingEncoder(TinyEncoder):
    """Makes its fine level again rather than keeping it on disk."""

    spec = replace(SPEC, remade=1)
    remakes = 0

    def remake(self, slices: torch.Tensor) -> list[torch.Tensor]:
        self.remakes += 1
        return [torch.relu(self.fine(slices))]
