"""A labelled volume as an atlas: its mask is carried to where the target is, and counts as much as it is trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import PocketDecoder, PocketEncoder, draw_volume, quick, two_labels

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.atlas import AtlasConfig, Guide, cells_of, guide_for
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.method import adapt, segment
from ssmsam.fewshot.proposals import Proposals
from ssmsam.imaging.volume import Grid, Volume


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


@pytest.fixture(scope="module")
def head(embedder: Embedder) -> Head:
    return adapt(two_labels(embedder), embedder, PocketDecoder(), config=quick(folds=2))


def test_a_completed_head_has_an_atlas_that_its_file_keeps(head: Head, tmp_path: Path) -> None:
    (atlas,) = head.atlases
    assert set(atlas.distances) == set(head.labels)
    loaded = Head.load(head.save(tmp_path / "head.safetensors"), PocketDecoder(), weights_sha256="pocket")
    (again,) = loaded.atlases
    assert again.volume == atlas.volume and again.grid.matches(atlas.grid)
    assert torch.equal(again.image, atlas.image)
    assert all(torch.equal(again.distances[label], atlas.distances[label]) for label in head.labels)


def test_an_atlas_guides_other_volumes_only(head: Head, embedder: Embedder) -> None:
    own, other = embedder.open(draw_volume()), embedder.open(draw_volume(seed=3))
    label = head.labels[0]
    assert guide_for(head.atlases, label, own, [0, 1], 32, config=AtlasConfig()) is None
    assert guide_for(head.atlases, "unknown", other, [0, 1], 32, config=AtlasConfig()) is None
    guide = guide_for(head.atlases, label, other, [2, 3, 4], 32, config=AtlasConfig())
    assert guide is not None and guide.distances.shape == guide.trust.shape == (3, 32, 32)
    assert guide.trust.min() >= 0 and guide.trust.max() <= 1


def test_without_atlases_nothing_is_registered(head: Head, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("registered")

    monkeypatch.setattr("ssmsam.fewshot.atlas.register", fail)
    config = quick(folds=0)
    config = replace(config, segmentation=replace(config.segmentation, atlas=None))
    query = embedder.open(draw_volume(seed=11))
    segment(query, head, config=config)
    with pytest.raises(AssertionError, match="registered"):
        segment(query, head)


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


def test_a_guide_rules_out_elsewhere_only_beside_a_decoder_in_doubt() -> None:
    distances = np.full((1, 4, 4), -10.0)
    distances[0, :2] = 3.0
    trust = np.zeros((1, 4, 4))
    trust[0, :2] = 0.9  # far from the target registration says nothing
    guide, config = Guide(distances, trust, 0.9, 1.0), AtlasConfig()
    sure, lost = guide.logits(0.0, config), guide.logits(1.0, config)
    assert (sure[0, 2:] == 0).all() and (lost[0, 2:] < -5).all()
    assert (sure[0, :2] > 0).all() and (lost[0, :2] > sure[0, :2]).all()
    distrusted = Guide(distances, np.zeros_like(trust), 0.0, 0.0)
    assert (distrusted.logits(1.0, config) == 0).all()


def test_a_mask_that_was_carried_well_tells_objects_apart() -> None:
    distances = np.full((6, 16, 16), -5.0)
    distances[2:4, 2:6, 2:6] = 2.0
    config, cell_mm, trust = AtlasConfig(), (5.0, 5.0, 5.0), np.full_like(distances, 0.9)
    here, there = distances > 0, np.roll(distances > 0, 9, axis=2)
    well, badly = Guide(distances, trust, 0.9, 0.99), Guide(distances, trust, 0.9, 0.05)
    assert well.nearness(here, cell_mm, config) == pytest.approx(0, abs=0.01)
    assert well.nearness(there, cell_mm, config) < -2
    assert badly.nearness(there, cell_mm, config) > -0.1, "it may as well be there"
    proposals = Proposals(np.arange(6), np.zeros((6, 16, 16), np.float32), np.ones(6), np.zeros((6, 3)))
    assert proposals.guided(well, config).carried is well
    assert proposals.guided(badly, config).carried is None


class Registered:
    """A registration that leaves every place where it is, and is off by ``error_mm``."""

    def __init__(self, grid: Grid, error_mm: float) -> None:
        self.grid, self.error_mm = grid, torch.full(grid.shape, error_mm)

    def carried(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_where_registration_contradicts_itself_a_carried_mask_counts_for_nothing(
    head: Head, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, label, config = embedder.open(draw_volume(seed=3)), head.labels[0], AtlasConfig()
    (atlas,) = head.atlases
    mm = atlas.grid.spacing[0]

    def guide(error_mm: float) -> Guide:
        monkeypatch.setattr("ssmsam.fewshot.atlas.registered", lambda *_, **__: Registered(atlas.grid, error_mm))
        found = guide_for(head.atlases, label, query, [2, 3, 4], 32, config=config)
        assert found is not None
        return found

    well, badly = guide(1.0 * mm), guide(14.0 * mm)
    assert well.likelihood > 0.95 and badly.likelihood < 0.05
    assert well.overall > 0.9 and well.logits(0.0, config).max() > 0
    assert not badly.logits(0.0, config).any()
    assert np.abs(badly.logits(1.0, config)).max() < 0.05 * np.abs(well.logits(1.0, config)).max()


def test_doubt_is_what_the_surest_mask_does_not_expect_of_itself() -> None:
    logits = np.full((2, 4, 4), -9.0, dtype=np.float32)
    nothing = Proposals(np.arange(2), logits, np.ones(2), np.zeros((2, 3)))
    assert nothing.doubt == 1.0
    sharp, vague = logits.copy(), logits.copy()
    sharp[0, :2], vague[0, :2] = 9.0, 0.3
    assert replace(nothing, logits=sharp).doubt < 0.01 < 0.2 < replace(nothing, logits=vague).doubt
