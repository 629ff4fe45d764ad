"""Groups of slices: what each query is shown, and what it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssmsam.fewshot.support_bank import signed_distance
from ssmsam.models.prompt_small import closeness
from ssmsam_research.training.groups import Group, GroupBatch, GroupConfig, Groups, assembled
from ssmsam_research.training.pack import PackedVolume
from ssmsam_research.training.prompt_episodes import EpisodeBatch, EpisodeConfig, Episodes, Mixture
from ssmsam_research.training.semantics import Vocabulary

CONFIG = GroupConfig(groups=2, slices=4, targets=2, rows=100, sides=(64,), cross_share=0.0)


def groups_of(*volumes: PackedVolume, config: GroupConfig = CONFIG) -> Groups:
    return Groups(volumes=volumes, vocabulary=Vocabulary(volumes), config=config)


def another(packed: PackedVolume) -> PackedVolume:
    """A second patient of the same set."""
    return replace(packed, info=replace(packed.info, name="two"), image=packed.image[:, ::-1].copy())


def of_few_slices(packed: PackedVolume, count: int) -> PackedVolume:
    first = 5
    cut = {"image": packed.image, "label": packed.label}
    cut = {name: array[first : first + count] for name, array in cut.items()}
    return replace(packed, regions=packed.regions[:, first : first + count], **cut)


def a_group(volume: list[int], position: list[float], seed: int = 0) -> Group:
    """Slices of noise, each with another mask."""
    count, side = len(volume), 16
    rng = np.random.default_rng(seed)
    masks = np.zeros((1, count, side // 2, side // 2), np.float32)
    for number in range(count):
        masks[0, number, : 3 + number % 4, 1:7] = 1
    return Group(
        pixels=rng.random((count, 3, side, side)).astype(np.float32),
        masks=masks,
        volume=np.array(volume),
        position=np.array(position),
        semantic=np.zeros((count, side // 4, side // 4), np.int64),
        labelled=np.ones((count, 2), bool),
    )


def rows_of(batch: GroupBatch):
    """(asked, supports, near) of every query, the supports without padding."""
    for asked, supports, near in zip(batch.asked.tolist(), batch.supports.tolist(), batch.near.tolist(), strict=True):
        given = [n for n, number in enumerate(supports) if number >= 0]
        yield asked, [supports[n] for n in given], [near[n] for n in given]


def test_batches_have_the_promised_shapes_and_ranges(packed: PackedVolume) -> None:
    rng, groups = np.random.default_rng(0), groups_of(packed)
    for _ in range(6):
        batch = groups.draw(rng)
        count, asked = len(batch.described), len(batch.asked)
        assert batch.slices.shape == (8, 3, 64, 64)
        assert batch.masks.shape == (count, 1, 32, 32)
        assert batch.prior.shape == (asked, 1, 32, 32)
        assert batch.supports.shape == batch.near.shape == (asked, CONFIG.slices - 1)
        assert batch.trust.shape == (asked, 2)
        assert batch.semantic.shape == (8, 16, 16)
        assert batch.labelled.shape == (8, 3)
        for unit in (batch.slices, batch.masks, batch.near, batch.trust):
            assert unit.min() >= 0 and unit.max() <= 1
        assert batch.described.max() < 8 and batch.supports.max() < count
        shown = torch.tensor([bool((batch.masks[supports] > 0).any()) for _, supports, _ in rows_of(batch)])
        assert shown.all(), "some support shows the target"


def test_a_query_is_not_among_its_supports(packed: PackedVolume) -> None:
    rng, groups = np.random.default_rng(1), groups_of(packed, another(packed), config=replace(CONFIG, cross_share=0.5))
    for _ in range(10):
        batch = groups.draw(rng)
        for asked, supports, _ in rows_of(batch):
            assert supports
            assert asked not in supports
            assert len(set(supports)) == len(supports)
            assert len({n // CONFIG.slices for n in [asked, *supports]}) == 1, "all of one target"


def test_a_slice_that_was_drawn_twice_is_not_its_own_support() -> None:
    """In a volume with fewer slices than a group has, or by chance."""
    group = a_group([0, 0, 0, 0], [0.0, 5.0, 5.0, 10.0])
    rng = np.random.default_rng(0)
    for _ in range(20):
        for asked, supports, near in rows_of(assembled([group], rng, replace(CONFIG, no_prior_share=0.0))):
            assert all(group.position[n] != group.position[asked] for n in supports)
            assert max(near) < 1


def test_volumes_of_few_slices_can_be_learned_from(packed: PackedVolume) -> None:
    rng, groups = np.random.default_rng(0), groups_of(of_few_slices(packed, 3))
    for _ in range(8):
        assert max(max(near) for *_, near in rows_of(groups.draw(rng))) < 1


def test_the_prior_is_that_of_the_supports_shown() -> None:
    group = a_group([0, 0, 0], [0.0, 10.0, 30.0])
    distances = [signed_distance(mask > 0.5) for mask in group.masks[0]]
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(30):
        batch = assembled([group], rng, replace(CONFIG, slices=3, no_prior_share=0.0))
        for row, (asked, supports, near) in enumerate(rows_of(batch)):
            met.add((asked, tuple(supports)))
            steps = [closeness(group.position[n] - group.position[asked]) for n in supports]
            np.testing.assert_allclose(near, steps, rtol=1e-5)
            if (asked, supports) == (1, [0, 2]):
                between = distances[0] * 2 / 3 + distances[2] / 3
                np.testing.assert_allclose(batch.prior[row, 0], between, atol=1e-4)
                np.testing.assert_allclose(batch.trust[row], [1, closeness(10)], rtol=1e-5)
            if (asked, supports) == (0, [2]):
                np.testing.assert_array_equal(batch.prior[row, 0], distances[2])
                np.testing.assert_allclose(batch.trust[row], [0, closeness(30)], rtol=1e-5)
    assert {(1, (0, 2)), (0, (2,))} <= met


@pytest.mark.parametrize("own_share", [0.0, 1.0])
def test_over_two_volumes_only_own_slices_give_a_prior(own_share: float) -> None:
    group = a_group([0, 0, 1, 1], [0.0, 10.0, 0.0, 10.0])
    rng, config = np.random.default_rng(0), replace(CONFIG, own_share=own_share, no_prior_share=0.0)
    own_seen = False
    for _ in range(20):
        batch = assembled([group], rng, config)
        for row, (asked, supports, near) in enumerate(rows_of(batch)):
            own = [group.volume[n] == group.volume[asked] for n in supports]
            own_seen |= any(own)
            assert [value > 0 for value in near] == own
            assert bool(batch.trust[row].any()) == bool(batch.prior[row].any()) == any(own)
    assert own_seen == bool(own_share)


def test_a_share_of_queries_does_without_the_prior() -> None:
    rng = np.random.default_rng(0)
    batch = assembled([a_group([0, 0, 0], [0.0, 5.0, 9.0])], rng, replace(CONFIG, slices=3, no_prior_share=1.0))
    assert len(batch.asked) == 3
    assert not batch.prior.any() and not batch.trust.any()
    assert batch.near.any(), "how near the slices are is still told"


def test_two_patients_are_put_in_one_group(packed: PackedVolume) -> None:
    groups = groups_of(packed, another(packed), config=replace(CONFIG, cross_share=1.0, own_share=0.0))
    batches = [groups.draw(np.random.default_rng(seed)) for seed in range(12)]
    cross = [not batch.trust.any() for batch in batches]
    assert any(cross)
    assert not all(cross), "the same patient drawn twice makes a group in one volume"


def test_the_number_of_queries_is_bounded(packed: PackedVolume) -> None:
    batch = groups_of(packed, config=replace(CONFIG, rows=5)).draw(np.random.default_rng(0))
    assert len(batch.asked) == len(batch.supports) == len(batch.prior) == 5


def test_same_seed_same_groups(packed: PackedVolume) -> None:
    def drawn(seed: int) -> list[GroupBatch]:
        groups, rng = groups_of(packed, another(packed)), np.random.default_rng(seed)
        return [groups.draw(rng) for _ in range(3)]

    for mine, theirs in zip(drawn(3), drawn(3), strict=True):
        for name, value in vars(mine).items():
            assert torch.equal(value, getattr(theirs, name)), name
    assert not torch.equal(drawn(3)[0].slices, drawn(4)[0].slices)


def test_a_mixture_has_both_kinds_of_batches(packed: PackedVolume) -> None:
    def kinds(share: float) -> list[bool]:
        episodes = Episodes(volumes=[packed], config=EpisodeConfig(pairs=1, targets=1, sides=(64,)), seed=0)
        stream = iter(Mixture(episodes=episodes, groups=groups_of(packed), group_share=share, seed=0))
        batches = [next(stream) for _ in range(12)]
        assert all(isinstance(batch, GroupBatch | EpisodeBatch) for batch in batches)
        return [isinstance(batch, GroupBatch) for batch in batches]

    assert all(kinds(1.0))
    assert not any(kinds(0.0))
    assert 2 < sum(kinds(0.5)) < 10


@pytest.mark.parametrize("twins", [{}, {"twin_bend": 3.0, "twin_recolour": 1.0}])
def test_twins_are_one_volume_shown_as_two_patients(packed: PackedVolume, twins: dict[str, float]) -> None:
    config = replace(CONFIG, twin_share=1.0, own_share=0.0, no_prior_share=0.0, **twins)
    groups, rng = groups_of(packed, config=config), np.random.default_rng(0)
    seen = 0
    for _ in range(12):
        group = groups.draw_one(rng, 64)
        assert group.pixels.min() >= 0 and group.pixels.max() <= 1
        two = group.volume.max() == 1
        batch = assembled([group], rng, config)
        for asked, supports, near in rows_of(batch):
            shown = group.volume[np.array(supports) % CONFIG.slices]
            if two and (shown != group.volume[asked % CONFIG.slices]).all():
                seen += 1
                assert not any(near)
    assert seen > 5


def test_the_other_patient_s_crop_shows_the_same_place_of_the_body(packed: PackedVolume) -> None:
    shifted = replace(
        packed,
        info=replace(packed.info, name="two"),
        image=np.roll(packed.image, 20, axis=1),
        label=np.roll(packed.label, 20, axis=1),
    )
    moved = shifted.body_centres - packed.body_centres
    assert np.allclose(moved[:, 0], 0, atol=2) and np.allclose(moved[:, 1], 20, atol=6)
