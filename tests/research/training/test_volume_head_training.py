"""The volume head learns from examples what to keep, and what its mask is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmsam.models.volume_head import OBJECT_DESCRIPTORS, SLICE_DESCRIPTORS
from ssmsam_research.training.volume_head_examples import Example, LabelledVolume, read_examples, write_examples
from ssmsam_research.training.volume_head_training import (
    Summaries,
    VolumeHeadConfig,
    chosen_dice,
    learn_estimate,
    overall_dice,
    padded,
    train_volume_head,
)

QUICK = VolumeHeadConfig(epochs=12, batch=8)
TELLS = 20
"""The descriptor that tells, in these examples, whether a mask is right."""


def example(seed: int) -> Example:
    """Two objects on 9 to 14 slices: the first is the target on a run of slices, the second is not."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(9, 15))
    low, high = sorted(rng.choice(np.arange(1, count - 1), 2, replace=False))
    right = np.zeros((2, count), dtype=bool)
    right[0, low : high + 1] = True
    slices = rng.normal(0, 0.3, (2, count, SLICE_DESCRIPTORS))
    slices[..., TELLS] = np.where(right, 1.0, -1.0)
    objects = rng.normal(0, 0.3, (2, OBJECT_DESCRIPTORS))
    objects[:, 3] = [1.0, -1.0]
    area = np.full((2, count), 100)
    inside = np.where(right, 95, 5)
    known = np.zeros(count, dtype=bool)
    known[low] = True
    truth = np.where(right[0], 100, 0)
    return Example(slices, objects, np.ones((2, count), bool), area, inside, truth, known, f"made/{seed}")


def test_it_learns_which_slices_of_which_object_are_the_target() -> None:
    head = train_volume_head([example(seed) for seed in range(48)], QUICK)
    unseen = [example(seed) for seed in range(100, 120)]
    found, expected = chosen_dice(head, unseen)
    everything = overall_dice(torch.ones_like(padded(unseen).shown), padded(unseen))[:, 0].numpy()
    assert everything.mean() < 0.7 < 0.85 < found.mean()
    assert abs(found.mean() - expected.mean()) < 0.1


def test_what_to_expect_is_learned_anew_and_what_is_kept_is_not() -> None:
    several = [example(seed) for seed in range(12)]
    head = train_volume_head(several, VolumeHeadConfig(epochs=1))
    before, first = chosen_dice(head, several)
    worse = [replace(one, inside=one.inside // 4) for one in several]
    known = Summaries.of(head, worse)
    learn_estimate(head, known)
    after, second = chosen_dice(head, several)
    assert (after == before).all()
    assert second.mean() == pytest.approx(float(known.dice.mean()), abs=0.05)
    assert second.mean() < first.mean() - 0.1


def test_the_same_seed_gives_the_same_head() -> None:
    several = [example(seed) for seed in range(6)]
    quick = VolumeHeadConfig(epochs=2, batch=4)
    one, same = (train_volume_head(several, quick).state_dict() for _ in range(2))
    other = train_volume_head(several, VolumeHeadConfig(epochs=2, batch=4, seed=1)).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_without_examples_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="volume-head"):
        train_volume_head([])


def test_annotated_slices_are_not_counted() -> None:
    one = example(0)
    batch = padded([one])
    perfect = (batch.inside > 50).float()
    open_ = ~one.known & (one.truth > 0)
    expected = 2 * 95 * open_.sum() / (200 * open_.sum()) if open_.any() else 1.0
    assert overall_dice(perfect, batch)[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_padding_changes_nothing() -> None:
    short, long = sorted((example(seed) for seed in range(20)), key=lambda one: len(one.truth))[::19]
    head = train_volume_head([short, long], VolumeHeadConfig(epochs=1))
    alone, beside = chosen_dice(head, [short])[0][0], chosen_dice(head, [short, long])[0][0]
    assert beside == pytest.approx(alone, abs=0.15), "only the convolutions' reach sees the end"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    several = [example(3), example(4)]
    write_examples(tmp_path / "new" / "one.npz", several)
    found = read_examples(tmp_path / "new" / "one.npz")
    assert [one.name for one in found] == ["made/3", "made/4"]
    for one, again in zip(several, found, strict=True):
        for name in ("slices", "objects", "shown", "area", "inside", "truth", "known"):
            np.testing.assert_array_equal(getattr(one, name), getattr(again, name))


@pytest.mark.parametrize("kind", ["organ", "region", "half", "pair"])
def test_unfamiliar_targets_are_on_enough_slices(kind: str) -> None:
    labels = np.zeros((10, 12, 12), dtype=int)
    labels[1:9, 2:6, 2:6], labels[2:8, 7:11, 7:11], labels[4, 0, 0] = 1, 2, 3
    volume = LabelledVolume("made", None, labels, labels)  # type: ignore[arg-type]  # nothing is embedded
    found = volume.unfamiliar(kind, np.random.default_rng(0))
    assert found and all(mask.any(axis=(1, 2)).sum() >= 6 for mask in found.values())
    sizes = {int(mask.sum()) for mask in found.values()}
    whole = {int((labels == 1).sum()), int((labels == 2).sum())}
    if kind in ("organ", "region"):
        assert sizes == whole
    else:
        assert all(size == sum(whole) if kind == "pair" else size < max(whole) for size in sizes)
