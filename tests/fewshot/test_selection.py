"""What is kept of proposals: the volume head decides, and a person's annotations stay whatever it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ORGAN, OTHER, SLICES, PocketDecoder, ball, draw_volume, labelled, quick
from torch import nn

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import SegmentationConfig
from ssmsam.fewshot.pipeline import adapt
from ssmsam.fewshot.proposals import Proposals, Target
from ssmsam.fewshot.selection import Candidates, candidates, selected
from ssmsam.models.small_encoder import SPEC
from ssmsam.models.volume_head import OBJECT_DESCRIPTORS, SLICE_DESCRIPTORS, Judgement

BLOB = ball((4, 24, 13), (2, 5, 5))


class Planned(nn.Module):
    """Keeps some slices of every object, and takes some objects for the target."""

    def __init__(self, rows: list[int], targets: list[float] | None = None) -> None:
        super().__init__()
        self.rows, self.targets = rows, targets

    def forward(self, slices: torch.Tensor, objects: torch.Tensor, shown: torch.Tensor) -> Judgement:
        keep = torch.full(shown.shape, -5.0)
        keep[:, self.rows] = 5.0
        target = torch.tensor(self.targets or [5.0] * len(shown))[: len(shown)]
        return Judgement(keep, torch.zeros_like(keep), target, torch.zeros(len(shown)), torch.full((len(shown),), 2.0))


def task_of(embedder: Embedder, mask: np.ndarray, slices: tuple[int, ...], seed: int = 0) -> AdaptedTask:
    support = {"a": labelled(embedder, draw_volume(seed), mask, slices)}
    config = quick(adaptation=replace(quick().adaptation, steps=0))
    return adapt(support, embedder, PocketDecoder(), pseudo_labels=False, config=config)


def two_pieces() -> Proposals:
    logits = np.full((SLICES, 32, 32), -4.0, dtype=np.float32)
    logits[1:8, 8:14, 6:12] = 4
    logits[2:7, 20:27, 20:27] = 3
    return Proposals(np.arange(SLICES), logits, np.full(SLICES, 0.9), np.eye(SLICES, SPEC.channels))


def among(embedder: Embedder, task: AdaptedTask, seed: int = 0, **known: object) -> Candidates:
    query = embedder.open(draw_volume(seed))
    return candidates(two_pieces(), Target(task, "a", query, SegmentationConfig()), **known)  # type: ignore[arg-type]


def rows_of(proposals: Proposals) -> list[int]:
    return np.flatnonzero((proposals.logits > 0).any(axis=(1, 2))).tolist()


def test_slices_are_kept_as_the_volume_checkpoint_says(embedder: Embedder) -> None:
    found = selected(two_pieces(), Planned([3, 4]), among(embedder, task_of(embedder, ORGAN, (4,), 3)), several=False)
    assert rows_of(found.proposals) == [3, 4]
    assert found.proposals.presence[3] > 0.9 > 0.1 > found.proposals.presence[6]
    assert found.expected == pytest.approx(0.88, abs=0.01)
    everywhere = selected(
        two_pieces(), Planned([]), among(embedder, task_of(embedder, ORGAN, (4,), 3)), several=False, every_slice=True
    )
    assert rows_of(everywhere.proposals) == list(range(2, 7)), "the larger piece"


def test_the_most_likely_object_is_the_target_or_all_likely_ones(embedder: Embedder) -> None:
    around = among(embedder, task_of(embedder, ORGAN, (4,), 3))
    assert len(around.objects) == 2
    one = selected(two_pieces(), Planned(list(range(SLICES)), [1.0, 3.0]), around, several=False).proposals.logits > 0
    assert one[4, 10, 8] and not one[4, 22, 22]
    both = selected(two_pieces(), Planned(list(range(SLICES)), [1.0, 3.0]), around, several=True).proposals.logits > 0
    assert both[4, 22, 22] and both[4, 10, 8]
    unlikely = (
        selected(two_pieces(), Planned(list(range(SLICES)), [-1.0, 3.0]), around, several=True).proposals.logits > 0
    )
    assert not unlikely[4, 22, 22]


def test_of_several_pieces_on_a_slice_the_surest_says_whether_the_target_is_there(embedder: Embedder) -> None:
    class OneSure(Planned):
        def forward(self, slices: torch.Tensor, objects: torch.Tensor, shown: torch.Tensor) -> Judgement:
            said = super().forward(slices, objects, shown)
            said.keep[1] = -5.0
            return said

    around = among(embedder, task_of(embedder, ORGAN, (4,), 3))
    found = selected(two_pieces(), OneSure(list(range(SLICES))), around, several=True).proposals
    assert (found.presence[2:7] > 0.9).all(), "the first piece is there, whatever the second says"


def test_annotated_slices_stay_whatever_the_volume_checkpoint_says(embedder: Embedder) -> None:
    around = among(embedder, task_of(embedder, BLOB, (3, 5, 7)))
    found = selected(two_pieces(), Planned([]), around, several=False).proposals
    assert rows_of(found) == [3, 5], "nothing is on slice 7, as was annotated"
    assert found.presence[[3, 5, 7]].tolist() == [1.0, 1.0, 0.0]


def test_an_end_is_open_just_past_an_annotated_slice_where_something_was_left_out(embedder: Embedder) -> None:
    ends_open = among(embedder, task_of(embedder, BLOB, (3, 5)))
    assert selected(two_pieces(), Planned([4]), ends_open, several=False).proposals.open_ends == (6, 2)
    assert selected(two_pieces(), Planned(list(range(SLICES))), ends_open, several=False).proposals.open_ends == ()
    one_known = among(embedder, task_of(embedder, BLOB, (3, 5, 8)))
    assert selected(two_pieces(), Planned([4]), one_known, several=False).proposals.open_ends == (2,)


def test_a_clicked_slice_counts_as_annotated(embedder: Embedder) -> None:
    around = among(embedder, task_of(embedder, ORGAN, (4,), 3), clicked=(2,))
    found = selected(two_pieces(), Planned([]), around, several=False).proposals
    assert rows_of(found) == [2]


@pytest.mark.parametrize("slices", [(4,), (2, 6), (1, 3, 5, 8)])
@pytest.mark.parametrize("seed", [0, 3])
def test_descriptors_are_finite_and_bounded(embedder: Embedder, slices: tuple[int, ...], seed: int) -> None:
    for mask in (ORGAN, OTHER):
        found = among(embedder, task_of(embedder, mask, slices, seed)).described
        assert found is not None
        assert found.slices.shape[1:] == (SLICES, SLICE_DESCRIPTORS)
        assert found.objects.shape[1:] == (OBJECT_DESCRIPTORS,)
        for values in (found.slices, found.objects):
            assert np.isfinite(values).all()
            assert np.abs(values).max() <= 20


def test_nothing_proposed_is_nothing_found(embedder: Embedder) -> None:
    nothing = replace(two_pieces(), logits=np.full((SLICES, 32, 32), -4.0, dtype=np.float32))
    target = Target(task_of(embedder, ORGAN, (4,), 3), "a", embedder.open(draw_volume(5)), SegmentationConfig())
    around = candidates(nothing, target)
    found = selected(nothing, Planned([4]), around, several=False)
    assert around.described is None and rows_of(found.proposals) == []
