"""Encoders and decoders that stand in for real ones in tests: small, seeded, and real in every part that is asked.

Child processes import it as well.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.frame import Frame
from ssmsam.models.prompt_decoder import Candidates, Neighbour, SlicePrompt
from ssmsam.models.small_encoder import SPEC, SmallEncoder
from ssmsam.volume.volume import Volume

POCKET_SIDE = 64


class PocketEncoder(Encoder):
    """The small encoder with random weights, on a smaller input. Counts the slices it was given."""

    spec = replace(SPEC, name="pocket", input_size=POCKET_SIDE)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = SmallEncoder()
        self.weights_sha256 = "pocket"
        self.seen = 0
        self.eval().requires_grad_(False)

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.seen += len(slices)
        return self.network(slices)


class PocketDecoder(TargetNetwork):
    """The few-shot decoder with random weights, for the pocket encoder."""

    logits_side = POCKET_SIDE // 2

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.eval().requires_grad_(False)


class PoolingEncoder(Encoder):
    """A real encoder of the smallest kind: it averages."""

    spec = EncoderSpec(name="pooling", input_size=32, stride=8, channels=3)
    weights_sha256 = "pooling"

    def encode(self, slices: torch.Tensor) -> Embedding:
        return {"image": torch.nn.functional.avg_pool2d(slices, 8), "levels": []}


TINY_SPEC = EncoderSpec("tiny", 32, 4, 8, level_strides=(2,), level_channels=(4,), context=1, licence="Apache-2.0")


class TinyEncoder(Encoder):
    """Two strided convolutions with seeded weights. ``seconds`` is slept for every slice."""

    spec = TINY_SPEC

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


class RemakingEncoder(TinyEncoder):
    """Makes its fine level again rather than keeping it on disk."""

    spec = replace(TINY_SPEC, remade=1)
    remakes = 0

    def remake(self, slices: torch.Tensor) -> list[torch.Tensor]:
        self.remakes += 1
        return [torch.relu(self.fine(slices))]


def a_volume(*, slices: int = 12, seed: int = 0) -> Volume:
    """CT-like noise, slices distinct from each other."""
    array = np.random.default_rng(seed).integers(-200, 300, (slices, 20, 28)).astype(np.int16)
    return Volume(array, np.diag([-1.0, 1.0, 3.0, 1.0]), modality="CT")


SIZE = 64
TOLERANCES = (0.12, 0.3)
QUALITIES = (0.9, 0.7)


class PixelEncoder(Encoder):
    """The embedding is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = EncoderSpec(name="pixels", input_size=SIZE, stride=1, channels=3)
        self.weights_sha256 = "0" * 64

    def encode(self, slices: torch.Tensor) -> Embedding:
        return {"image": slices.clone(), "levels": []}


class RegionDecoder:
    """A prompted segmenter without weights: connected pixels of about the prompted intensity, two candidates, a strict
    and a lenient one. It answers to all prompts and can be predicted by hand, so tests can say what must come out.
    """

    logits_size = SIZE
    least_likeness = 0.0

    def __init__(self) -> None:
        self.calls = 0
        self.fed_back = 0
        self.distances: set[float] = set()

    def predict(
        self,
        embedding: Embedding,
        *,
        frame: Frame,
        prompt: SlicePrompt | None = None,
        previous: torch.Tensor | None = None,
        neighbour: Neighbour | None = None,
    ) -> Candidates:
        prompt = prompt or SlicePrompt()
        if prompt.empty and previous is None and neighbour is None:
            raise ValueError("nothing says where the target is")
        self.calls += 1
        self.fed_back += previous is not None
        image = embedding["image"][0, 0].float().cpu().numpy()
        seeds, reference, presence = np.zeros(image.shape, bool), [], 1.0
        start = np.zeros(image.shape, bool)
        for x, y in frame.points_to_input(prompt.positive):
            seeds[_clip(y), _clip(x)] = True
            reference.append(image[_clip(y), _clip(x)])
        if prompt.box is not None:
            x, y = frame.points_to_input(np.reshape(prompt.box, (2, 2))).mean(axis=0)
            seeds[_clip(y), _clip(x)] = True
            reference.append(image[_clip(y), _clip(x)])
        if previous is not None:
            start = previous[0, 0].numpy() > 0
        if neighbour is not None:
            self.distances.add(round(neighbour.distance_mm, 4))
            there = neighbour.mask[0, 0].numpy() > 0.5
            level = float(neighbour.embedding["image"][0, 0].numpy()[there].mean())
            reference.append(level)
            similar = there & (np.abs(image - level) < TOLERANCES[0])
            presence = min(1.0, 2 * similar.sum() / max(1, there.sum()))
            seeds |= similar
        masks = [self._grow(image, seeds, reference, start, prompt, frame, tolerance) for tolerance in TOLERANCES]
        return Candidates(torch.from_numpy(np.stack(masks)), torch.tensor(QUALITIES), float(presence))

    def _grow(self, image, seeds, reference, start, prompt, frame, tolerance) -> np.ndarray:
        difference = np.full(image.shape, np.inf)
        for level in reference:
            difference = np.minimum(difference, np.abs(image - level))
        allowed = difference < tolerance
        for x, y in frame.points_to_input(prompt.negative):
            yx = np.indices(image.shape)
            apart = np.hypot(yx[0] - y, yx[1] - x) > 3
            allowed &= apart
            start = start & apart
        labels, _ = ndimage.label(allowed)
        region = np.isin(labels, np.unique(labels[seeds & allowed])) & allowed
        logits = np.where(region, 1 + 4 * (1 - np.minimum(difference, 1)), -4.0)
        return np.where(start & (logits < 0), 2.0, logits).astype(np.float32)


def _clip(value: float) -> int:
    return int(np.clip(np.rint(value), 0, SIZE - 1))


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
