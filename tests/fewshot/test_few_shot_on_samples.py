"""What the shipped weights do on the synthetic sample volumes: better than what needs no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssmsam.api import support_of
from ssmsam.cli.adapt import LabelledFile, examples_from, read_labelled
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support_bank import interpolated, signed_distance
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.registry import load_encoder, load_target_decoder
from ssmsam.models.weights import MissingWeights
from ssmsam_research.metrics import dice

SAMPLES = Path(__file__).parents[2] / "sample-datasets"
LIVER = {"liver": 1}
ANNOTATED = (12, 20, 28, 36)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> tuple[Embedder, TargetDecoder]:
    try:
        encoder = load_encoder("small")
    except MissingWeights:
        pytest.skip("the small model's weights are not in this checkout")
    try:
        return Embedder(encoder=encoder), load_target_decoder("small")
    except ValueError as error:
        pytest.skip(f"these weights have no few-shot part: {error}")


def sample(name: str, slices: tuple[int, ...] | None = None) -> LabelledFile:
    if not (SAMPLES / "abdomen").is_dir():
        pytest.skip("the sample dataset is not in this checkout")
    return LabelledFile(SAMPLES / "abdomen" / f"{name}.nii.gz", SAMPLES / "abdomen_labels" / f"{name}.nii.gz", slices)


def test_the_rest_of_a_volume(model: tuple[Embedder, TargetDecoder]) -> None:
    embedder, decoder = model
    image = read_labelled(sample("ct_01", ANNOTATED))
    truth = image.labels == 1
    support = support_of(examples_from([image], LIVER), embedder)
    task = adapt(support, embedder, decoder, config=FewShotConfig(folds=0))
    mask = segment(embedder.open(image.image), task, support=support).mask == 1
    queried = [index for index in range(ANNOTATED[0], ANNOTATED[-1]) if index not in ANNOTATED]
    distances = {float(index): signed_distance(truth[index]) for index in ANNOTATED}
    between = np.stack([interpolated(distances, index, truth.shape[1:]).distance > 0 for index in queried])
    ours, interpolation = dice(mask[queried], truth[queried]), dice(between, truth[queried])
    nearest = np.stack([truth[min(ANNOTATED, key=lambda k, i=index: abs(k - i))] for index in queried])
    assert ours > 88
    assert ours > dice(nearest, truth[queried]) + 3
    assert ours > interpolation - 2, "the prior is a prompt: the image must not make it worse"


def test_another_patient(model: tuple[Embedder, TargetDecoder]) -> None:
    embedder, decoder = model
    shown, query = read_labelled(sample("ct_01", ANNOTATED)), read_labelled(sample("ct_03"))
    task = adapt(support_of(examples_from([shown], LIVER), embedder), embedder, decoder, config=FewShotConfig(folds=0))
    found = segment(embedder.open(query.image), task)
    truth = query.labels == 1
    assert dice(found.mask == 1, truth) > 65
    there = truth.any(axis=(1, 2))
    assert found.presence[0][there].mean() > found.presence[0][~there].mean() + 0.2
