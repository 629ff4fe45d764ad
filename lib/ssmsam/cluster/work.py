"""What is done with each study of a cohort: embed it, segment it, say how well that would go.

Work is a frozen dataclass of paths and settings: it is sent to the workers, and the models are loaded there, once in
each process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydicom.uid import generate_uid

from ssmsam import __version__
from ssmsam.api import FewShotSegmenter, Segmentation, SegmentationTask, load_embedder, write_dicom_seg, write_volume
from ssmsam.cluster.studies import Study, archive, files_of
from ssmsam.dicom.file import read_dataset
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.embeddings.object_store import ObjectStore, open_store
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.models.weights import sha256_of
from ssmsam.ops import dice
from ssmsam.paths import default_support
from ssmsam.progress import Progress, silent
from ssmsam.reading import read_volume
from ssmsam.service.identifiers import VOLUME_SUFFIXES
from ssmsam.volume.geometry import FILES_MM, Plane
from ssmsam.volume.volume import Volume

GB = 10**9
UNCERTAIN = 3
"""Slices that a study's outcome names as the most uncertain: a guess of how many somebody looks at."""


class Work(Protocol):
    """One kind of work. ``identity`` is everything that changes its outcome, ready for JSON."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def __call__(self, study: Study, *, progress: Progress = silent) -> dict[str, Any]:
        """The outcome of a study, ready for JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model a worker loads.

    Attributes:
        encoder: its name.
        store: where embeddings are kept: a folder that all workers share, or a URL (s3://bucket/prefix ...).
        store_gb: the most that is kept in the folder, or of a URL on each worker.
        weights: a folder to look for weights in first.
        allow_unverified: accept weights of one's own.
        device: as torch names it; None for a GPU where there is one.
        threads: of torch in each process; None leaves them alone.
    """

    encoder: str
    store: str | None = None
    store_gb: float = 20.0
    weights: str | None = None
    allow_unverified: bool = False
    device: str | None = None
    threads: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"version": __version__, "encoder": self.encoder, "weights": self.weights}


@dataclass(frozen=True, kw_only=True)
class EmbedStudy:
    """All slices of a study through the encoder, into the store."""

    model: Model
    name = "embed"

    @property
    def identity(self) -> dict[str, Any]:
        return {"work": self.name, **self.model.identity, "store": self.model.store}

    def __call__(self, study: Study, *, progress: Progress = silent) -> dict[str, Any]:
        embedder = embedder_of(self.model)
        with files_of(study) as path:
            volume = read_volume(path)
        before, opened = embedder.encoded, embedder.open(volume)
        opened.embed(progress=progress)
        if embedder.store is not None:
            _published(embedder.store, opened)
        return {"slices": opened.count, "encoded": embedder.encoded - before}


@dataclass(frozen=True, kw_only=True)
class _TaskStudy:
    """A task's labels in a study."""

    model: Model
    task: str
    task_sha256: str
    method: str = FEWSHOT

    def _found(self, path: Path, progress: Progress) -> tuple[Segmentation, dict[str, dict[str, Any]]]:
        """The segmentation of an image, and what is told of each label."""
        task = task_of(self.model, self.method, self.task, self.task_sha256)
        volume = read_volume(path)
        found = task.segment(volume, progress=progress)
        plane = Plane.named(task.card.get("plane"), volume.grid)
        return found, {label: summary(found, label, plane) for label in found.labels}


@dataclass(frozen=True, kw_only=True)
class SegmentStudy(_TaskStudy):
    """The labels of a task in every study: a label map in ``out``/labels, or a DICOM SEG in the archive of the series.

    Attributes:
        model: as of :class:`EmbedStudy`.
        task: the file that ``ssmsam adapt`` wrote, seen by all workers.
        task_sha256: of that file.
        method: what made the task.
        out: the cohort's folder, shared by all workers.
        to_archive: store a DICOM SEG where the series came from.
    """

    out: str
    to_archive: bool = False
    name = "segment"

    @property
    def identity(self) -> dict[str, Any]:
        return {"work": self.name, **self.model.identity, "task": self.task_sha256, "to_archive": self.to_archive}

    def __call__(self, study: Study, *, progress: Progress = silent) -> dict[str, Any]:
        if self.to_archive and study.series is None:
            raise ValueError("a DICOM SEG goes back to the DICOMweb store that the series is from: this is a file")
        with files_of(study) as path:
            found, labels = self._found(path, progress)
            return {**self._write(found, study, path), "labels": labels}

    def _write(self, found: Segmentation, study: Study, path: Path) -> dict[str, Any]:
        if not self.to_archive:
            file = Path(self.out) / "labels" / f"{study.name}.nii.gz"
            write_volume(found, file)
            return {"file": f"labels/{file.name}"}
        if not found.label_map.array.any():
            return {"stored": ""}
        with tempfile.TemporaryDirectory(prefix="ssmsam-seg-") as folder:
            seg = write_dicom_seg(found, path, Path(folder) / "seg.dcm")
            uid = _number(seg, entropy=[study.name, *map(str, self.identity.values())])
            archive(study.source).add(seg)
        return {"stored": uid}


@dataclass(frozen=True, kw_only=True)
class ScoreStudy(_TaskStudy):
    """How well a task does on every study: what it expects, and the Dice where there is truth. Writes no mask.

    Attributes:
        truth: a folder of label maps with the names and numbers of the task; None without truth.
    """

    truth: str | None = None
    name = "score"

    @property
    def identity(self) -> dict[str, Any]:
        return {"work": self.name, **self.model.identity, "task": self.task_sha256, "truth": self.truth}

    def __call__(self, study: Study, *, progress: Progress = silent) -> dict[str, Any]:
        with files_of(study) as path:
            found, labels = self._found(path, progress)
        if self.truth:
            truth = self._truth(study, found.label_map)
            for label, number in found.numbers.items():
                labels[label]["dice"] = round(float(dice(found.mask[label], truth == number)), 4)
        return {"labels": labels}

    def _truth(self, study: Study, volume: Volume) -> np.ndarray:
        for ending in VOLUME_SUFFIXES:
            file = Path(str(self.truth)) / f"{study.name}{ending}"
            if file.exists():
                truth = read_volume(file)
                if not truth.grid.matches(volume.grid, tolerance_mm=FILES_MM):
                    raise ValueError(f"the truth {file.name} is not on the grid of its image")
                return truth.array
        raise FileNotFoundError(f"there is no truth for {study.name} in {self.truth}: expected {study.name}.nii.gz")


def task_file(path: Path) -> dict[str, Any]:
    """``task`` and ``task_sha256`` of the work that uses a task's file."""
    return {"task": str(path.absolute()), "task_sha256": sha256_of(path)}


def summary(found: Segmentation, label: str, plane: Plane) -> dict[str, Any]:
    """A label's number, how much of it was found, the Dice that is expected of it, and its most uncertain slices."""
    mask = found.mask[label]
    least_sure = np.argsort(-found.uncertainty[label], kind="stable")[:UNCERTAIN]
    return {
        "number": found.numbers[label],
        "millilitres": round(float(mask.sum() * np.prod(found.label_map.spacing) / 1000), 3),
        "slices": int(plane.stack(mask).any(axis=(1, 2)).sum()),
        "dice_estimate": round(float(found.dice_estimate[label]), 3),
        "uncertain_slices": [int(found.slices[place]) for place in least_sure],
    }


@lru_cache(maxsize=2)
def embedder_of(model: Model) -> Embedder:
    """The encoder and its store, loaded once in each process."""
    return load_embedder(model.encoder, **_settings(model))


@lru_cache(maxsize=2)
def segmenter_of(model: Model, method: str) -> FewShotSegmenter:
    """The model, loaded once in each process."""
    support = default_support()
    return FewShotSegmenter.from_pretrained(model.encoder, method=method, support_cache=support, **_settings(model))


def _settings(model: Model) -> dict[str, Any]:
    if model.threads:
        torch.set_num_threads(model.threads)
    store = open_store(model.store, quota_bytes=int(model.store_gb * GB)) if model.store else None
    told = {name: getattr(model, name) for name in ("device", "weights", "allow_unverified")}
    return {**told, "store": store}


@lru_cache(maxsize=2)
def task_of(model: Model, method: str, path: str, sha256: str) -> SegmentationTask:
    """The task, loaded once in each process. Raises ValueError when this worker sees another file."""
    if sha256_of(Path(path)) != sha256:
        raise ValueError(f"{path} is not the task that the run began with: put the same file there on every worker")
    return segmenter_of(model, method).load_task(path)


def _published(store: EmbeddingStore, opened: VolumeEmbeddings) -> None:
    """Raises OSError where the store did not take every slice; what is complete goes to those who share the store."""
    done = store.open(opened.key, grid=opened.grid, count=opened.count).done
    if not done.all():
        raise OSError(
            f"the embedding store took {int(done.sum())} of {opened.count} slices: give it more room (--store-gb) or "
            "another folder"
        )
    if isinstance(store, ObjectStore):
        store.publish(opened.key)


def _number(path: Path, *, entropy: list[str]) -> str:
    """Give a DICOM SEG the instance UID that follows from what it is of: stored twice, it is there once."""
    dataset = read_dataset(path)
    uid = generate_uid(entropy_srcs=entropy)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    dataset.save_as(path, write_like_original=False)
    return str(uid)
