"""A small organ in a small volume, with the real networks, untrained."""

from __future__ import annotations

import numpy as np
import pytest

from ssmsam.active.forecast import prompted
from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.volume.volume import Volume
from ssmsam_research.model_choice import ModelChoice, PromptedModel

SHAPE, SPACING = (6, 40, 48), (5.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def organ() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:5, 8:28, 10:30] = True
    return mask


@pytest.fixture(scope="module")
def model(random_small: ModelChoice) -> PromptedModel:
    return PromptedModel.load(random_small)


@pytest.fixture(scope="module")
def query(model: PromptedModel, organ: np.ndarray) -> VolumeEmbeddings:
    array = (60 + 90 * organ + np.random.default_rng(0).normal(0, 8, SHAPE)).astype(np.float32)
    opened = model.embedder.open(Volume(array, np.diag([*SPACING[::-1], 1.0]), "MR"))
    opened.embed()
    return opened


@pytest.fixture(scope="module")
def task(model: PromptedModel, query: VolumeEmbeddings, organ: np.ndarray) -> AdaptedTask:
    support = {"organ": [LabelledSlice(query, index, organ[index]) for index in (1, 4)]}
    encoded = model.embedder.encoded
    made = prompted(support, model.embedder, model.target)
    assert model.embedder.encoded == encoded and made.card["steps"] == 0
    return made
