"""Protocol "speed": what a click costs on a slice that is embedded already, against encoding on every click.

Encoding the slice anew on every click is what MONAI Label's own SAM 2 task does. Both are measured in one run, taking
turns, through the functions that answer the server's requests, so their ratio holds on a busy machine too.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmsam.cli.annotator import Click
from ssmsam.cli.live_server import live_server
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.sam_encoder import build_sam
from ssmsam.models.weights import entry
from ssmsam.progress import Progress, silent
from ssmsam.volume.volume import Volume
from ssmsam_research.model_choice import ModelChoice, PromptedModel, PromptedTarget
from ssmsam_research.protocols.fewshot_task import with_ends


@dataclass(frozen=True)
class SpeedProtocol:
    """How often things are timed. Slices are taken from the middle of the volume outwards."""

    rounds: int = 7
    warm_up: int = 1
    threads: int = 2


@dataclass(frozen=True)
class Timing:
    """Wall-clock and processor seconds of one thing done several times."""

    wall: list[float]
    processor: list[float]

    @property
    def median(self) -> float:
        return float(np.median(self.wall))

    def over(self, other: Timing) -> dict[str, float]:
        """How many times as long as another one, by the medians of both clocks."""
        processor = float(np.median(self.processor)) / float(np.median(other.processor))
        return {"wall": round(self.median / other.median, 2), "processor": round(processor, 2)}

    def as_json(self) -> dict[str, Any]:
        return {
            "median": round(self.median, 5),
            "best": round(min(self.wall), 5),
            "worst": round(max(self.wall), 5),
            "processor_median": round(float(np.median(self.processor)), 5),
            "n": len(self.wall),
        }


def measure_model(
    choice: ModelChoice, volume: Volume, protocol: SpeedProtocol = SpeedProtocol(), *, progress: Progress = silent
) -> dict[str, Any]:
    """Times of one model on one volume, in a process of its own for an honest peak of memory.

    ``first_click`` is on a slice that nothing is known of, ``later_click`` the next click on that slice,
    ``reencoding_click`` the same click with the slice encoded again. ``ratio`` is the last over ``later_click``.
    """
    torch.set_num_threads(protocol.threads)
    model = PromptedModel.load(choice)
    embeddings = model.embedder.open(volume)
    # without memory and store every click goes through the encoder
    forgetful = Embedder(encoder=model.embedder.encoder, memory_bytes=0).open(volume)
    indices = middle_slices(embeddings.count, protocol.rounds + protocol.warm_up)
    height, width = embeddings.frame.height, embeddings.frame.width
    clicks = [Click(width // 2, height // 2, True), Click(width // 2, height // 4, False)]
    timings: dict[str, tuple[list[float], list[float]]] = {}
    for number, index in enumerate(indices):
        progress(f"time {choice.encoder}", number, len(indices))
        target, again = (PromptedTarget(opened, model.decoder) for opened in (embeddings, forgetful))
        for name, work in {
            "first_click": lambda: target.slice_mask(index, clicks[:1], None),  # noqa: B023 (called at once)
            "later_click": lambda: target.slice_mask(index, clicks, None),  # noqa: B023
            "reencoding_first_click": lambda: again.slice_mask(index, clicks[:1], None),  # noqa: B023
            "reencoding_click": lambda: again.slice_mask(index, clicks, None),  # noqa: B023
            "embed_slice": lambda: forgetful.slice(index),  # noqa: B023
        }.items():
            wall, processor = timed(work)
            if number >= protocol.warm_up:
                kept = timings.setdefault(name, ([], []))
                kept[0].append(wall)
                kept[1].append(processor)
    progress(f"time {choice.encoder}", len(indices), len(indices))
    seconds = {name: Timing(*kept) for name, kept in timings.items()}
    return {
        "weights_sha256": model.weights_sha256,
        "input_size": model.embedder.encoder.spec.input_size,
        "seconds": {name: timing.as_json() for name, timing in seconds.items()},
        "ratio": round(seconds["reencoding_click"].median / seconds["later_click"].median, 2),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def middle_slices(count: int, wanted: int) -> list[int]:
    """``wanted`` slices of a volume of ``count``, neighbours round the middle; fewer when there are fewer."""
    wanted = min(wanted, count)
    first = (count - wanted) // 2
    return list(range(first, first + wanted))


def measure_server(
    app: Path, studies: Path, *, conf: Mapping[str, str] | None = None, starts: int = 2
) -> dict[str, Any]:
    """Time from the start command to the first answer, and the memory then, of a server on ``studies``."""
    found = []
    for _ in range(starts):
        with live_server(app=app, studies=studies, conf=conf) as server:
            found.append((server.start_s, server.memory_mb()["now"]))
    return {
        "start_seconds": {"median": round(float(np.median([s for s, _ in found])), 2), "n": starts},
        "memory_mb": round(float(np.median([mb for _, mb in found]))),
    }


def write_random_weights(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A checkpoint of the official layout with random numbers: as slow as the real one, for timing only."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / entry(name).file
    torch.save(build_sam(entry(name).architecture).state_dict(), path)
    return path


def peak_memory_mb() -> float:
    """The most resident memory that this process has used so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of ``work``."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


SLICES = 5
_TARGET = "target"


def measure_adaptation(
    choice: ModelChoice, volume: Volume, truth: np.ndarray, protocol: SpeedProtocol, *, steps: int = 4
) -> dict[str, Any]:
    """Times of one model on the largest label of ``truth`` (slices, rows, columns), shown on five slices.

    ``epoch_cached`` is a pass over the five slices in training with cached embeddings, ``epoch_encoding`` the same
    with every slice encoded again, forward only, as a frozen encoder in the loop would do; ``ratio`` the second over
    the first. ``adapt`` is everything from labelled slices with cached embeddings to a head, with its estimate, and
    ``segment_slice`` a slice of the volume with cached embeddings; both only for encoders that take less than a second
    a slice.
    """
    torch.set_num_threads(protocol.threads)
    model = PromptedModel.load(choice)
    embeddings = model.embedder.open(volume)
    values, counts = np.unique(truth[truth > 0], return_counts=True)
    mask = truth == values[counts.argmax()]
    support = {_TARGET: [LabelledSlice(embeddings, index, mask[index]) for index in with_ends(mask, SLICES)]}
    started = time.perf_counter()
    embeddings.embed([one.index for one in support[_TARGET]])
    encode = (time.perf_counter() - started) / SLICES
    config = FewShotConfig()
    plain = replace(
        config.adaptation, steps=steps, budget_s=float("inf"), views=replace(config.adaptation.views, views=0)
    )
    tasks = adaptation_tasks(support, model.embedder, model.target, config=plain)
    fit(model.target, tasks, replace(plain, steps=1))
    cached = fit(model.target, tasks, plain).seconds / (steps * plain.batch) * SLICES
    found: dict[str, Any] = {
        "epoch_cached": round(cached, 4),
        "epoch_encoding": round(cached + SLICES * encode, 4),
        "ratio": round((cached + SLICES * encode) / cached, 1),
    }
    if encode < 1:
        started = time.perf_counter()
        head = adapt(support, model.embedder, model.target, pseudo_labels=False, config=config)
        found["adapt"] = round(time.perf_counter() - started, 2)
        found["adaptation_steps"] = head.card["steps"]
        embeddings.embed()
        started = time.perf_counter()
        segment(embeddings, head, config=config)
        found["segment_slice"] = round((time.perf_counter() - started) / embeddings.count, 4)
    return {**found, "peak_memory_mb": round(peak_memory_mb())}
