"""A labelled volume as an atlas: its mask is propagated to where the target is, with how far it is to be trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import PocketDecoder, PocketEncoder, draw_volume, kept_and_read, quick, two_labels

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.atlas import Guide, averaged, cells_of, guide_for
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.volume.volume import Grid, Volume


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


@pytest.fixture(scope="module")
def task(embedder: Embedder) -> AdaptedTask:
    return adapt(two_labels(embedder), embedder, PocketDecoder(), config=quick(folds=2))


def test_a_completed_checkpoint_has_an_atlas_that_its_file_keeps(task: AdaptedTask, tmp_path: Path) -> None:
    (atlas,) = task.atlases
    assert set(atlas.distances) == set(task.labels)
    loaded = kept_and_read(task, tmp_path, PocketDecoder())
    (again,) = loaded.atlases
    assert again.volume == atlas.volume and again.grid.matches(atlas.grid)
    assert torch.equal(again.image, atlas.image)
    assert all(torch.equal(again.distances[label], atlas.distances[label]) for label in task.labels)


def test_an_atlas_guides_other_volumes_only(task: AdaptedTask, embedder: Embedder) -> None:
    own, other = embedder.open(draw_volume()), embedder.open(draw_volume(seed=3))
    label = task.labels[0]
    assert guide_for(task.atlases, label, own, [0, 1], 32) is None
    assert guide_for(task.atlases, "unknown", other, [0, 1], 32) is None
    guide = guide_for(task.atlases, label, other, [2, 3, 4], 32)
    assert guide is not None and guide.distances.shape == guide.trust.shape == (3, 32, 32)
    assert guide.trust.min() >= 0 and guide.trust.max() <= 1


def test_without_atlases_nothing_is_registered(
    task: AdaptedTask, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("registered")

    monkeypatch.setattr("ssmsam.fewshot.atlas.register", fail)
    config = quick(folds=0)
    config = replace(config, segmentation=replace(config.segmentation, atlases=False))
    query = embedder.open(draw_volume(seed=11))
    segment(query, task, config=config)
    with pytest.raises(AssertionError, match="registered"):
        segment(query, task)


@pytest.mark.parametrize("turned", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_cells_of_slices_are_the_same_however_the_volume_is_stored(embedder: Embedder, turned: tuple[int, ...]) -> None:
    plain = draw_volume()
    affine = plain.affine.copy()
    for axis in turned:
        column = 2 - axis
        affine[:3, 3] += affine[:3, column] * (plain.shape[axis] - 1)
        affine[:3, column] *= -1
    stored = Volume(np.flip(plain.array, turned).copy(), affine, modality=plain.modality)
    query = embedder.open(stored)
    values = torch.from_numpy(plain.array.astype(np.float32))[None]
    slices = list(range(query.count))[::-1] if 0 in turned else list(range(query.count))
    there = cells_of(values, plain.grid, query, slices, 32)
    expected = cells_of(values, plain.grid, embedder.open(plain), list(range(query.count)), 32)
    assert np.allclose(there, expected, atol=1e-3)


def test_a_decoder_is_shown_distance_trust_and_likelihood_within_one() -> None:
    distances = np.linspace(-40, 40, 32).reshape(2, 4, 4)
    guide = Guide(distances, np.full((2, 4, 4), 0.7), 0.4)
    maps = guide.maps([1])
    assert maps.shape == (1, 3, 4, 4)
    assert maps.abs().max() <= 1
    assert (maps[0, 0] > 0).all(), "the second slice is inside"
    assert torch.allclose(maps[0, 1:].amax((1, 2)), torch.tensor([0.7, 0.4]))


def test_several_volumes_are_averaged_by_how_far_they_are_trusted() -> None:
    shape = (1, 2, 2)
    well = np.full(shape, 3.0), np.full(shape, 0.9), 0.9
    badly = np.full(shape, -5.0), np.full(shape, 0.01), 0.05
    distance, trust, likely = averaged([well])
    np.testing.assert_allclose(distance, well[0])
    assert (trust == 0.9).all() and likely == 0.9
    assert (averaged([well, badly])[0] > 2.9).all()


class Registered:
    """A registration that leaves every place where it is, and is off by ``error_mm``."""

    def __init__(self, grid: Grid, error_mm: float) -> None:
        self.grid, self.error_mm = grid, torch.full(grid.shape, error_mm)

    def propagated(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_where_registration_contradicts_itself_a_carried_mask_is_not_trusted(
    task: AdaptedTask, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, label = embedder.open(draw_volume(seed=3)), task.labels[0]
    (atlas,) = task.atlases
    mm = atlas.grid.spacing[0]

    def guide(error_mm: float) -> Guide:
        monkeypatch.setattr("ssmsam.fewshot.atlas.registered", lambda *_, **__: Registered(atlas.grid, error_mm))
        found = guide_for(task.atlases, label, query, [2, 3, 4], 32)
        assert found is not None
        return found

    well, badly = guide(1.0 * mm), guide(20.0 * mm)
    assert well.trust.max() > 0.9 and badly.trust.max() < 0.01
    assert well.likelihood > 2 * badly.likelihood
