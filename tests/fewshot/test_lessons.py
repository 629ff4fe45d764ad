"""Labelled slices as exercises: each shown the others, and nothing of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ORGAN, QUICK, PocketDecoder, ball, draw_volume, labelled, tasks_of, two_labels

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import ViewConfig
from ssmsam.fewshot.episodes import QueryBatch, with_truth
from ssmsam.fewshot.support import LabelledSlice, NothingToLearn, checked, digest

GARBAGE = ball((4, 8, 40), (9, 6, 6))
INDICES = (1, 3, 4, 6)


def with_garbage(slices: list[LabelledSlice], *numbers: int) -> list[LabelledSlice]:
    changed = list(slices)
    for number in numbers:
        changed[number] = replace(changed[number], mask=GARBAGE[changed[number].index])
    return changed


def same(one: QueryBatch, other: QueryBatch) -> bool:
    """Whether two queries are shown and have read the same, bit by bit."""
    pairs = [*zip(vars(one.context).values(), vars(other.context).values(), strict=True)]
    pairs += zip(vars(one.features).values(), vars(other.features).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def slices(embedder: Embedder) -> list[LabelledSlice]:
    return labelled(embedder, draw_volume(), ORGAN, INDICES)


def test_a_slice_is_not_shown_its_own_mask(embedder: Embedder, decoder: PocketDecoder, slices) -> None:
    honest = tasks_of({"organ": slices}, embedder, decoder)["organ"]
    for number in range(len(INDICES)):
        other = tasks_of({"organ": with_garbage(slices, number)}, embedder, decoder)["organ"]
        for view, changed in zip(honest, other, strict=True):
            assert same(view.query_batch([number]), changed.query_batch([number]))
            assert not torch.equal(view.query_batch([number]).masks, changed.query_batch([number]).masks)
            neighbour = (number + 1) % len(INDICES)
            assert not same(view.query_batch([neighbour]), changed.query_batch([neighbour])), (
                "its mask is shown to others"
            )


def test_where_encoding_takes_long_there_are_no_further_views(
    embedder: Embedder, decoder: PocketDecoder, slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(tasks_of({"organ": slices}, embedder, decoder)["organ"]) > 1
    before = embedder.encoded
    monkeypatch.setattr(decoder, "varies", False)
    assert len(tasks_of({"organ": slices}, embedder, decoder)["organ"]) == 1
    assert embedder.encoded == before


def test_hidden_slices_are_not_shown(embedder: Embedder, decoder: PocketDecoder, slices) -> None:
    honest = tasks_of({"organ": slices}, embedder, decoder)["organ"][0]
    other = tasks_of({"organ": with_garbage(slices, 0, 3)}, embedder, decoder)["organ"][0]
    assert same(honest.query_batch([1, 2], hidden=(0, 3)), other.query_batch([1, 2], hidden=(0, 3)))
    assert not same(honest.query_batch([1, 2], hidden=(0,)), other.query_batch([1, 2], hidden=(0,)))


def test_hidden_slices_are_not_shown_in_another_view_either(embedder: Embedder, decoder: PocketDecoder, slices) -> None:
    """When one slice is left, it is shown itself in another view, but still nothing that is hidden."""
    honest = tasks_of({"organ": slices}, embedder, decoder)["organ"]
    other = tasks_of({"organ": with_garbage(slices, 0, 2, 3)}, embedder, decoder)["organ"]
    hidden = (0, 2, 3)
    query_batches = [views[0].query_batch_from([1], views[1], hidden=hidden) for views in (honest, other)]
    assert same(*query_batches)
    assert not query_batches[0].context.trust.any()
    assert not query_batches[0].context.prior.any()


def test_exercises_are_put_together_as_they_are_alone(embedder: Embedder, decoder: PocketDecoder) -> None:
    near, far = draw_volume(), draw_volume(seed=9)
    slices = labelled(embedder, near, ORGAN, INDICES) + labelled(embedder, far, ORGAN, (4,))
    adaptation_task = tasks_of({"organ": slices}, embedder, decoder)["organ"][0]
    numbers = [3, 0, 4]
    together = adaptation_task.query_batch(numbers)
    for row, number in enumerate(numbers):
        alone = adaptation_task.query_batch([number])
        for name, value in vars(alone.context).items():
            assert torch.equal(getattr(together.context, name)[row : row + 1, : value.shape[1]], value), name
        assert torch.equal(together.embedding["image"][row], alone.embedding["image"][0])
        assert torch.equal(together.masks[row], alone.masks[0])


def test_the_truth_enters_only_a_prior_that_there_is(embedder: Embedder, decoder: PocketDecoder, slices) -> None:
    alone = labelled(embedder, draw_volume(seed=9), ORGAN, (4,))
    adaptation_task = tasks_of({"organ": slices + alone}, embedder, decoder)["organ"][0]
    single = adaptation_task.bank.volumes.index(alone[0].volume)
    company = 0 if single else 1
    query_batch = adaptation_task.query_batch([company, single])
    mixed = with_truth(query_batch, adaptation_task.bank, [company, single], [0.5, 0.5])
    half = (query_batch.context.prior[0, 0] + torch.from_numpy(adaptation_task.bank.distances[company])) / 2
    torch.testing.assert_close(mixed.context.prior[0, 0], half)
    assert not mixed.context.prior[1].any()


def test_what_was_drawn_where_nothing_is_known_is_not_shown(embedder: Embedder, decoder: PocketDecoder) -> None:
    known = np.zeros(ORGAN.shape, bool)
    known[:, :, :24] = True
    tasks = [
        tasks_of({"organ": labelled(embedder, draw_volume(), mask, INDICES, known=known)}, embedder, decoder)["organ"]
        for mask in (ORGAN & known, ORGAN | ~known)
    ]
    for one, other in zip(*tasks, strict=True):
        assert all(same(one.query_batch([n]), other.query_batch([n])) for n in range(len(INDICES)))
        assert torch.equal(one.masks, other.masks)
    whole = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, INDICES)}, embedder, decoder)["organ"][0]
    prior, unknown = tasks[0][0].query_batch([1]).context.prior[0, 0], tasks[0][0].bank.distances[0] == 0
    assert not prior[torch.from_numpy(unknown)].any(), "neither inside nor outside"
    assert whole.query_batch([1]).context.prior[0, 0][torch.from_numpy(unknown)].all()
    assert 0.2 < unknown.mean() < 0.5


def test_masks_move_with_their_slices(embedder: Embedder, decoder: PocketDecoder) -> None:
    """In a moved view the bright organ is still under its mask."""
    slices = labelled(embedder, draw_volume(), ORGAN, (4,))
    wild = replace(QUICK, views=ViewConfig(views=4, rotation_deg=60, scale=0.3, shift=0.2, gamma=0))
    views = tasks_of({"organ": slices}, embedder, decoder, wild)["organ"]
    plain = views[0].masks
    levels = [view.embedding["levels"][0][0] for view in views]
    inside = [level[:, view.masks[0, 0] > 0.9].mean(1) for level, view in zip(levels, views, strict=True)]
    ground = levels[0][:, plain[0, 0] < 0.1].mean(1)
    for view, mean in zip(views[1:], inside[1:], strict=True):
        assert not torch.allclose(view.masks, plain, atol=0.3)
        assert (mean - inside[0]).norm() < 0.4 * (ground - inside[0]).norm()


def test_labels_share_the_embeddings_of_their_slices(embedder: Embedder, decoder: PocketDecoder) -> None:
    support = two_labels(embedder)
    for slices in support.values():
        slices[0].embeddings.embed()
    before = embedder.encoder.seen
    tasks_of(support, embedder, decoder)
    assert embedder.encoder.seen - before == 3, "three slices in one other view, once for both labels"


def test_support_that_shows_nothing_is_refused(embedder: Embedder) -> None:
    empty = labelled(embedder, draw_volume(), np.zeros_like(ORGAN), (0, 1))
    with pytest.raises(NothingToLearn, match="'organ': annotate at least one slice"):
        checked({"organ": empty})
    with pytest.raises(NothingToLearn, match="no slice is annotated yet"):
        checked({})


def test_a_labelled_slice_must_fit_its_volume(embedder: Embedder) -> None:
    opened = embedder.open(draw_volume())
    with pytest.raises(ValueError, match="has shape"):
        LabelledSlice(opened, 0, np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="slice 9 is not in its volume, which has 9"):
        LabelledSlice(opened, 9, ORGAN[0])


def test_the_digest_changes_with_all_that_is_learned_and_not_with_order(embedder: Embedder, slices) -> None:
    first = digest({"organ": slices, "b": slices[:1]})
    assert digest({"b": slices[:1], "organ": slices[::-1]}) == first
    known = replace(slices[0], known=GARBAGE[slices[0].index])
    others = [
        {"organ": slices[1:], "b": slices[:1]},
        {"organ": with_garbage(slices, 0), "b": slices[:1]},
        {"organ": [known, *slices[1:]], "b": slices[:1]},
        {"liver": slices, "b": slices[:1]},
        {"organ": [replace(slices[0], index=2), *slices[1:]], "b": slices[:1]},
    ]
    assert len({first, *map(digest, others)}) == len(others) + 1
