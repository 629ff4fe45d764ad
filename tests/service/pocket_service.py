"""A few-shot service of seeded random weights over two small volumes: quick, and real in every part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from plain_files import PlainFiles

from fakes import PocketDecoder, PocketEncoder
from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.background import Background
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.service.images import Images
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

SHAPE = (10, 40, 48)
AFFINE = np.diag([1.5, 1.5, 5.0, 1.0])
LABELS = ("liver", "spleen")


def truth() -> np.ndarray:
    """Liver 1 on slices 2 to 7, spleen 2 on 4 to 6; (slices, rows, columns)."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:8, 8:28, 6:22] = 1
    array[4:7, 12:24, 30:42] = 2
    return array


def plain_studies(folder: Path) -> AnnotatedStudies:
    return AnnotatedStudies(PlainFiles(folder), folder / ".annotations", labels=LABELS)


def make_service(
    folder: Path, *, images: Sequence[str] = ("a", "b"), over: Callable[[Path], AnnotatedStudies] = plain_studies
) -> FewShotService:
    studies = folder / "studies"
    studies.mkdir()
    for seed, name in enumerate(images):
        noise = np.random.default_rng(seed).normal(0, 8, SHAPE)
        write_volume(Volume((60 + 90 * truth() + noise).astype(np.float32), AFFINE, "MR"), studies / f"{name}.nii.gz")
    annotated = over(studies)
    embedder = Embedder(encoder=PocketEncoder(), store=EmbeddingStore(folder / "store", quota_bytes=10**9))
    opened = Images(files=annotated.files, embedder=embedder, memory_bytes=10**9)
    return FewShotService(
        images=opened,
        studies=annotated,
        embedder=embedder,
        decoder=PocketDecoder(),
        background=Background(opened, enabled=False),
        registry=CheckpointRegistry(folder / "heads"),
        labels=LABELS,
    )


def annotate(
    service: FewShotService, image: str, slices: Mapping[str, Sequence[int]], folder: Path, *, complete: bool = False
) -> None:
    """Submit the truth of some slices, label by label."""
    array, values = np.zeros(SHAPE, np.uint8), dict(zip(LABELS, (1, 2), strict=True))
    for label, indices in slices.items():
        for index in indices:
            array[index][truth()[index] == values[label]] = values[label]
    file = folder / "submitted.nii.gz"
    write_volume(Volume(array, AFFINE), file)
    said = {label: {"annotated": list(indices)} for label, indices in slices.items()}
    params = {
        "label_info": [{"name": name, "idx": value} for name, value in values.items()],
        "client_id": "reader",
        "partial": {"slices": said, "complete": complete},
    }
    service.studies.save_label(image, str(file), "partial", json.loads(json.dumps(params)))


def embed(service: FewShotService, *images: str) -> None:
    for image in images:
        service.embedder.open_source(service.images.from_datastore(image).path).embed()
