"""Naming organs as a side task: what is not labelled in a set is no mistake there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssmsam_research.training.pack import PackedVolume
from ssmsam_research.training.semantics import SemanticHead, Vocabulary, semantic_loss


def scores(best: int, *, classes: int = 4, by: float = 12.0) -> torch.Tensor:
    """(1, classes, 2, 2) that are sure of one class."""
    found = torch.zeros(1, classes, 2, 2)
    found[:, best] = by
    return found


def loss(best: int, truth: int, *labelled: int) -> float:
    known = torch.zeros(1, 4, dtype=torch.bool)
    known[:, list(labelled)] = True
    return float(semantic_loss(scores(best), torch.full((1, 2, 2), truth), known))


def test_unlabelled_classes_are_not_punished_where_nothing_is_labelled() -> None:
    assert loss(3, 0, 1) < 0.01, "class 3 may be there: nobody looked for it"
    assert loss(0, 0, 1) < 0.01
    assert loss(3, 0, 1, 3) > 5
    assert loss(1, 0, 1) > 5


def test_a_labelled_organ_must_be_named() -> None:
    assert loss(1, 1, 1, 2) < 0.01
    assert loss(2, 1, 1, 2) > 5
    assert loss(0, 1, 1, 2) > 5
    assert loss(3, 1, 1, 2) > 5, "another class cannot be there where an organ is labelled"


def test_no_gradient_tells_unlabelled_classes_apart_from_the_ground() -> None:
    known = torch.tensor([[False, True, False, False]])
    guess = torch.zeros(1, 4, 2, 2, requires_grad=True)
    semantic_loss(guess, torch.zeros(1, 2, 2, dtype=torch.long), known).backward()
    assert torch.equal(guess.grad[:, 0], guess.grad[:, 2])
    assert torch.equal(guess.grad[:, 2], guess.grad[:, 3])
    assert (guess.grad[:, 1] > 0).all() and (guess.grad[:, 0] < 0).all()


def test_places_that_are_left_out_do_not_count() -> None:
    known = torch.tensor([[False, True, True, True]])
    target = torch.tensor([[[1, -1], [1, -1]]])
    guess = scores(1)
    guess[..., 1] = scores(3)[..., 1]
    assert float(semantic_loss(guess, target, known)) < 0.01
    nothing = semantic_loss(guess.requires_grad_(True), torch.full((1, 2, 2), -1), known)
    nothing.backward()
    assert nothing.item() == 0
    assert not guess.grad.any()


@pytest.fixture
def others(packed: PackedVolume) -> list[PackedVolume]:
    """Another set that calls the ball a ball, and one whose labels only have numbers."""
    named = replace(packed, info=replace(packed.info, dataset="named", labels={"ball": 2}))
    numbered = replace(packed, info=replace(packed.info, dataset="numbered", labels={"1": 1}))
    return [named, numbered]


def test_the_same_name_is_the_same_class_and_a_number_is_not(packed: PackedVolume, others: list[PackedVolume]) -> None:
    vocabulary = Vocabulary([packed, *others])
    assert vocabulary.names == ("", "ball", "numbered 1", "tube")
    assert len(vocabulary) == 4
    assert [vocabulary.classes(volume)[:3].tolist() for volume in (packed, *others)] == [
        [0, 1, 3],
        [0, 0, 1],
        [0, 2, 0],
    ]
    assert np.array_equal(vocabulary.labelled(packed), [False, True, False, True])
    assert np.array_equal(vocabulary.labelled(others[0]), [False, True, False, False])


def test_a_head_scores_every_fourth_pixel() -> None:
    embedding = {
        "image": torch.zeros(2, 128, 4, 4),
        "levels": [torch.zeros(2, 16, 16, 16), torch.zeros(2, 48, 8, 8)],
    }
    assert SemanticHead(5)(embedding).shape == (2, 5, 8, 8)
