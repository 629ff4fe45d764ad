"""Volumes with objects planted in them, and a model of seeded random weights that is small enough for tests.

Child processes import it as well.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fakes import PocketDecoder, PocketEncoder
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.adapted_task import AdaptedTask, SupportCache, read_task, write_task
from ssmsam.fewshot.config import AdaptationConfig, FewShotConfig, ViewConfig
from ssmsam.fewshot.episodes import AdaptationTask, adaptation_tasks
from ssmsam.fewshot.support import LabelledSlice, Support
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Volume

SLICES, ROWS, COLUMNS = 9, 40, 48
AFFINE = np.diag([1.5, 1.5, 5.0, 1.0])
QUICK = AdaptationConfig(steps=3, budget_s=float("inf"), batch=3, views=ViewConfig(views=1))
ALL = tuple(range(SLICES))


def ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """(slices, rows, columns) bool."""
    zyx = np.indices((SLICES, ROWS, COLUMNS))
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(zyx, centre, radii, strict=True)) <= 1


ORGAN = ball((4, 18, 16), (3.3, 10, 9))
OTHER = ball((5, 22, 36), (2.4, 8, 7))


def draw_volume(seed: int = 0, *, affine: np.ndarray = AFFINE) -> Volume:
    """A bright organ and a brighter one on a dark, noisy ground."""
    array = np.full(ORGAN.shape, 60.0)
    array[ORGAN] = 160
    array[OTHER] = 240
    array += np.random.default_rng(seed).normal(0, 8, array.shape)
    return Volume(array.astype(np.float32), affine, modality="MR")


def labelled(
    embedder: Embedder,
    volume: Volume,
    mask: np.ndarray,
    indices: Sequence[int],
    *,
    known: np.ndarray | None = None,
    plane: Plane = Plane(0),  # noqa: B008
) -> list[LabelledSlice]:
    """Slices of a mask (slices, rows, columns) as annotated; ``known`` of the same shape."""
    opened, stack = embedder.open(volume, plane=plane), plane.stack(mask)
    parts = [None if known is None else plane.stack(known)[index] for index in indices]
    return [LabelledSlice(opened, i, stack[i], part, "planted") for i, part in zip(indices, parts, strict=True)]


def two_labels(embedder: Embedder, indices: Sequence[int] = (2, 4, 6)) -> Support:
    volume = draw_volume()
    return {"organ": labelled(embedder, volume, ORGAN, indices), "other": labelled(embedder, volume, OTHER, indices)}


def tasks_of(
    support: Support, embedder: Embedder, decoder: TargetNetwork, config: AdaptationConfig = QUICK
) -> dict[str, list[AdaptationTask]]:
    return dict(adaptation_tasks(support, embedder, decoder, config=config))


def quick(**changes: object) -> FewShotConfig:
    """Settings for a few steps; ``changes`` are fields of :class:`FewShotConfig`."""
    return replace(FewShotConfig(adaptation=QUICK, folds=0), **changes)


def kept_and_read(task: AdaptedTask, folder: Path, decoder: TargetNetwork, *, elsewhere: bool = False) -> AdaptedTask:
    """A task after it was written and read again; ``elsewhere`` with its checkpoint alone, as on another machine."""
    path, cache = folder / "task.safetensors", SupportCache(folder / "support")
    write_task(path, task, base=decoder, cache=cache)
    if elsewhere:
        path = path.replace(folder / "exported.safetensors")
    return read_task(path, base=decoder, weights_sha256="pocket", cache=cache)


def state_digest(decoder: torch.nn.Module) -> str:
    """sha256 over all weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def adapted_digest() -> str:
    """The weights after a short adaptation, from nothing."""
    torch.set_num_threads(1)
    embedder, decoder = Embedder(encoder=PocketEncoder()), PocketDecoder()
    return state_digest(fit(decoder, tasks_of(two_labels(embedder), embedder, decoder), QUICK).decoder)


if __name__ == "__main__":
    sys.stdout.write(adapted_digest())
