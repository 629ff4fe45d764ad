"""What a model expects of slices: with the real networks, untrained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ssmsam.active.forecast import Expected, descriptors, expect
from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.pipeline import assembled, segment
from ssmsam_research.model_choice import PromptedModel


@pytest.fixture(scope="module")
def expected(task: AdaptedTask, query: VolumeEmbeddings) -> Expected:
    return expect(task, query, range(query.count))["organ"]


def test_areas_are_square_millimetres_of_the_mask_that_would_be_served(
    expected: Expected, query: VolumeEmbeddings, organ: np.ndarray
) -> None:
    forecast = expected.forecast
    served = assembled({"organ": expected.selected}, query).mask == 1
    assert forecast.area == pytest.approx(served.sum(axis=(1, 2)) * 4.0, rel=0.12)
    assert forecast.area[[1, 4]] == pytest.approx(organ[[1, 4]].sum(axis=(1, 2)) * 4.0, rel=0.05)


def test_errors_and_losses_are_within_their_ranges(expected: Expected) -> None:
    forecast = expected.forecast
    assert (forecast.error >= 0).all() and (forecast.expected_area >= 0).all()
    assert (forecast.error <= forecast.area + forecast.expected_area + 1e-6).all()
    assert ((forecast.loss >= 0) & (forecast.loss <= 1)).all()
    assert forecast.dice == expected.selected.expected
    assert 0 <= forecast.dice <= 1


def test_the_organ_is_expected_between_annotated_slices_that_show_it(expected: Expected) -> None:
    assert (expected.forecast.presence[1:5] == 1).all()
    assert (expected.forecast.presence[[0, 5]] < 1).all()


def test_what_is_expected_of_a_volume_is_of_the_mask_that_it_would_be_given(
    model: PromptedModel, query: VolumeEmbeddings, task: AdaptedTask
) -> None:
    """Also of a volume without annotations, and with slices that the model completed itself."""
    array = (60 + np.random.default_rng(1).normal(0, 30, query.grid.shape)).astype(np.float32)
    other = model.embedder.open(query.volume.with_array(array))
    bank = task.banks["organ"]
    more = replace(task, banks={"organ": bank.with_pseudo_labels(bank)})
    for volume in (query, other):
        volume.embed()
        served = segment(volume, more).mask == 1
        found = expect(more, volume, range(volume.count))["organ"]
        np.testing.assert_array_equal(assembled({"organ": found.selected}, volume).mask == 1, served)


def test_slices_that_the_model_completed_are_not_known(task: AdaptedTask, query: VolumeEmbeddings) -> None:
    bank = task.banks["organ"]
    empty = replace(bank, positions=bank.positions - 5.0, distances=np.full_like(bank.distances, -20.0))
    more = replace(task, banks={"organ": bank.with_pseudo_labels(empty)})
    plain, found = (expect(one, query, range(query.count))["organ"].forecast for one in (task, more))
    np.testing.assert_allclose(found.presence, plain.presence, rtol=1e-5)


def test_looks_are_unit_vectors_of_embedded_slices(query: VolumeEmbeddings) -> None:
    found = descriptors(query, [0, 3])
    assert set(found) == {0, 3}
    assert [float(np.linalg.norm(vector)) for vector in found.values()] == pytest.approx([1, 1], abs=1e-5)
