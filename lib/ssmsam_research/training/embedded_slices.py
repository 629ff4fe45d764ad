"""Slices of labelled sets with their embedding, cached on disk: a frozen encoder sees each of them once.

Of each case two arrays, ``SET-CASE.image.npy`` (n, c, h, w) float16 and ``SET-CASE.label.npy`` (n, S, S) uint8, S being
the side of the encoder's input. The second is written last: without it a case is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssmsam.files import whole_file
from ssmsam.models.encoder import Encoder
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import Case
from ssmsam_research.training.pack import SIZE, draw_labels, draw_slices, frame_of


@dataclass(frozen=True, eq=False)
class EmbeddedSlices:
    """Slices of one case. ``image`` (n, c, h, w) float16, read from the disk when used; ``label`` (n, S, S) uint8."""

    dataset: str
    name: str
    image: np.ndarray
    label: np.ndarray


def embed_case(
    case: Case, dataset: str, *, encoder: Encoder, folder: Path, limit: int, bfloat16: bool = False
) -> EmbeddedSlices | None:
    """At most ``limit`` slices of a case that hold a label, evenly spread; from the cache where they are there.

    None for a case without labels. Raises ValueError for an encoder of another input size than :data:`SIZE`.
    """
    if encoder.spec.input_size != SIZE:
        raise ValueError(f"slices are drawn at {SIZE} pixels, the encoder wants {encoder.spec.input_size}")
    stem = folder / f"{dataset}-{case.name}"
    if not _label_file(stem).exists():
        volume, labels = case.read()
        chosen = spread(np.flatnonzero(labels.any(axis=(1, 2))), limit)
        if not len(chosen):
            return None
        slices, drawn = draw(volume, labels, chosen)
        _write(_image_file(stem), _embedded(slices, encoder, bfloat16=bfloat16))
        _write(_label_file(stem), drawn)
    return _read(stem, dataset, case.name)


def load_slices(folder: Path, *, keep: Callable[[str], bool] = lambda dataset: True) -> list[EmbeddedSlices]:
    """What a cache folder holds, of the sets that ``keep`` wants. Raises FileNotFoundError when that is nothing."""
    found = []
    for path in sorted(folder.glob("*.label.npy")):
        stem = path.with_name(path.name.removesuffix(".label.npy"))
        dataset, _, name = stem.name.partition("-")
        if keep(dataset):
            found.append(_read(stem, dataset, name))
    if not found:
        raise FileNotFoundError(f"no embedded slices in {folder}: make them with `ssmsam train embed`")
    return found


def draw(volume: Volume, labels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a volume and their labels in the encoder's frame: uint8, both (n, SIZE, SIZE)."""
    scale = recipe_for(volume).scale(volume)
    frame = frame_of(volume, Plane())
    return draw_slices(volume.array[chosen], frame, (scale.low, scale.high)), draw_labels(labels[chosen], frame)


def spread(places: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of the places, evenly spread, without the very ends where there are more."""
    if len(places) <= limit:
        return places
    return places[((np.arange(limit) + 0.5) * len(places) / limit).astype(int)]


def _embedded(slices: np.ndarray, encoder: Encoder, *, bfloat16: bool) -> np.ndarray:
    return np.concatenate(list(_one_by_one(slices, encoder, bfloat16)))


def _one_by_one(slices: np.ndarray, encoder: Encoder, bfloat16: bool) -> Iterator[np.ndarray]:
    for pixels in slices:
        inputs = torch.from_numpy(pixels / np.float32(255))[None, None].expand(-1, 3, -1, -1)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            yield encoder.encode(inputs)["image"].to(torch.float16).contiguous().numpy()


def _image_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".image.npy")


def _label_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".label.npy")


def _write(path: Path, array: np.ndarray) -> None:
    with whole_file(path, ".npy") as partial:
        np.save(partial, array, allow_pickle=False)


def _read(stem: Path, dataset: str, name: str) -> EmbeddedSlices:
    image = np.load(_image_file(stem), mmap_mode="r", allow_pickle=False)
    return EmbeddedSlices(dataset, name, image, np.load(_label_file(stem), allow_pickle=False))
