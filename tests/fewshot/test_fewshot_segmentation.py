"""From labelled slices to masks of volumes, with a decoder that answers by the brightness or the prior of a slice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import ORGAN, OTHER, QUICK, SLICES, PocketDecoder, draw_volume, kept_and_read, labelled, quick, two_labels

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import BATCH, FOLLOWED, FewShotConfig, SegmentationConfig
from ssmsam.fewshot.pipeline import adapt, assembled, segment
from ssmsam.fewshot.proposals import Proposals, propose
from ssmsam.fewshot.selection import Selected, expected_loss
from ssmsam.fewshot.support import NothingToLearn
from ssmsam.models.fewshot_decoder import Proposal
from ssmsam.models.small_encoder import SPEC
from ssmsam.progress import Cancelled
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Volume, reoriented
from ssmsam_research.metrics import dice

UNADAPTED = quick(adaptation=replace(quick().adaptation, steps=0))


class Echo(PocketDecoder):
    """Answers with its prior."""

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(context.prior[:, 0], torch.ones(len(context.prior)))


class Growing(PocketDecoder):
    """Answers with its prior, a cell wider all around."""

    follows = True

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(context.prior[:, 0] + 1, torch.ones(len(context.prior)))


UNJUDGED = SegmentationConfig(volume_head=False, own_slices=0, follow=False)
"""Everything that is proposed is kept."""


class Everywhere(PocketDecoder):
    """Answers that the target is everywhere."""

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(torch.full_like(context.prior[:, 0], 5.0), torch.ones(len(context.prior)))


EVERYTHING = replace(UNADAPTED, segmentation=UNJUDGED)


def proposals(logits: np.ndarray, presence: float = 1.0) -> Proposals:
    descriptors = np.eye(len(logits), SPEC.channels)
    return Proposals(np.arange(len(logits)), logits.astype(np.float32), np.full(len(logits), presence), descriptors)


def selected(logits: np.ndarray) -> Selected:
    return Selected(proposals(logits), np.ones(len(logits)), 1.0, 1.0)


def task_of(embedder: Embedder, decoder: PocketDecoder, support) -> AdaptedTask:
    return adapt(support, embedder, decoder, config=UNADAPTED)


# what was annotated


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_annotated_slices_stay_as_they_are(embedder: Embedder, decoder: PocketDecoder, axis: int) -> None:
    plane, volume = Plane(axis), draw_volume()
    ragged = ORGAN & (np.random.default_rng(1).random(ORGAN.shape) < 0.7)
    indices = {0: (2, 4, 6), 1: (14, 20), 2: (12, 18)}[axis]
    support = {"organ": labelled(embedder, volume, ragged, indices, plane=plane)}
    query = embedder.open(volume, plane=plane)
    found = segment(query, adapt(support, embedder, decoder, config=quick()), support=support)
    stack, truth = plane.stack(found.mask == 1), plane.stack(ragged)
    for index in indices:
        np.testing.assert_array_equal(stack[index], truth[index])
    assert found.mask.shape == volume.shape
    assert found.slices.tolist() == list(range(plane.count(volume.grid)))


def test_an_empty_annotation_empties_its_slice_of_that_label_only(embedder: Embedder) -> None:
    support = {
        "a": labelled(embedder, draw_volume(), np.zeros_like(ORGAN), (4,))
        + labelled(embedder, draw_volume(), ORGAN, (2,)),
        "b": labelled(embedder, draw_volume(), OTHER, (5,)),
    }
    anywhere = FewShotConfig(segmentation=UNJUDGED)
    adapted = task_of(embedder, Everywhere(), support)
    found = segment(embedder.open(draw_volume()), adapted, support=support, config=anywhere)
    assert (found.mask[4] != 1).all()
    assert (found.mask[4] == 2).all()


def test_what_is_unknown_is_proposed(embedder: Embedder) -> None:
    """A partial annotation says nothing outside of what it covers: not background either."""
    known = np.zeros(ORGAN.shape, bool)
    known[:, :, :24] = True
    support = {"organ": labelled(embedder, draw_volume(), ORGAN & known, (3, 5), known=known)}
    for given in (support, None):
        adapted = task_of(embedder, Everywhere(), support)
        found = segment(embedder.open(draw_volume()), adapted, support=given, config=EVERYTHING)
        assert found.mask[3][1:-1, 27:].all()
        assert found.mask[4].all()
    truth = (ORGAN & known)[3]
    found = segment(embedder.open(draw_volume()), task_of(embedder, Everywhere(), support), support=support)
    np.testing.assert_array_equal(found.mask[3][:, :24] == 1, truth[:, :24])


def test_masks_of_other_volumes_never_enter(embedder: Embedder, decoder: PocketDecoder) -> None:
    support = two_labels(embedder)
    adapted = adapt(support, embedder, decoder, config=quick())
    query = embedder.open(draw_volume(seed=3))
    assert np.array_equal(segment(query, adapted, support=support).mask, segment(query, adapted).mask)


def test_nothing_is_proposed_past_a_slice_that_is_known_to_end_the_target(embedder: Embedder) -> None:
    seen = labelled(embedder, draw_volume(), ORGAN, (3,))
    support = {"organ": seen + labelled(embedder, draw_volume(), np.zeros_like(ORGAN), (1, 5))}
    adapted, query = task_of(embedder, Everywhere(), support), embedder.open(draw_volume())
    for ends, expected in ((True, [1, 2, 3, 4, 5]), (False, list(range(SLICES)))):
        found = propose(adapted, query, range(SLICES), config=UNJUDGED, to_known_ends=ends)["organ"]
        assert np.flatnonzero((found.logits > 0).any(axis=(1, 2))).tolist() == expected


# a target that one slice shows is followed outwards

COLUMN = np.broadcast_to(ORGAN[4], ORGAN.shape)
"""The same cross-section on every slice."""


def grown(embedder: Embedder, annotated: int, *, follow: bool = True, batch: int = BATCH) -> np.ndarray:
    """(SLICES, S, S) logits after one slice of the organ was annotated."""
    adapted = task_of(embedder, Growing(), {"organ": labelled(embedder, draw_volume(), COLUMN, (annotated,))})
    config = replace(UNJUDGED, batch=batch)
    found = propose(adapted, embedder.open(draw_volume()), range(SLICES), config=config, follow=follow)
    return found["organ"].logits


@pytest.mark.parametrize("annotated", [0, 3, SLICES - 1])
def test_what_was_found_supports_what_lies_farther_out(embedder: Embedder, annotated: int) -> None:
    away = np.abs(np.arange(SLICES) - annotated)
    steps = np.maximum(-(-away // FOLLOWED), 1)
    areas = (grown(embedder, annotated) > 0).sum(axis=(1, 2))
    for step in range(1, steps.max() + 1):
        (area,) = set(areas[steps == step])
        assert area > max(areas[steps < step], default=0)
    assert len(set((grown(embedder, annotated, follow=False) > 0).sum(axis=(1, 2)))) == 1


def test_how_many_slices_are_answered_at_once_changes_no_step(embedder: Embedder) -> None:
    for batch in (1, 3, 9):
        np.testing.assert_allclose(grown(embedder, 2, batch=batch), grown(embedder, 2), atol=1e-5)


def test_targets_are_followed_together_as_alone(embedder: Embedder) -> None:
    support = {
        "organ": labelled(embedder, draw_volume(), ORGAN, (2,)),
        "other": labelled(embedder, draw_volume(), OTHER, (6,)),
        "elsewhere": labelled(embedder, draw_volume(seed=5), OTHER, (5,)),
    }
    query, adapted = embedder.open(draw_volume()), task_of(embedder, Growing(), support)
    wanted = {"config": UNJUDGED, "up_to_extent": True, "follow": True}
    together = propose(adapted, query, range(SLICES), **wanted)
    for label, found in together.items():
        alone = propose(replace(adapted, banks={label: adapted.banks[label]}), query, range(SLICES), **wanted)[label]
        np.testing.assert_allclose(found.logits, alone.logits, atol=1e-4)
        np.testing.assert_allclose(found.descriptors, alone.descriptors, atol=1e-5)


@pytest.mark.parametrize(("annotated", "followed"), [((0,), True), ((0, 1), False)])
def test_only_a_target_that_one_slice_shows_is_followed(
    embedder: Embedder, annotated: tuple[int, ...], followed: bool
) -> None:
    adapted = task_of(embedder, Growing(), {"organ": labelled(embedder, draw_volume(), COLUMN, annotated)})
    query, whole = embedder.open(draw_volume()), replace(UNADAPTED, segmentation=replace(UNJUDGED, follow=True))
    areas = segment(query, adapted, config=whole).mask.sum(axis=(1, 2))
    assert (areas[FOLLOWED] < areas[FOLLOWED + 1]) == followed
    adapted.decoder.follows = False
    unfollowed = segment(query, adapted, config=whole).mask.sum(axis=(1, 2))
    assert unfollowed[2] == unfollowed[-1]


def test_labels_that_are_looked_for_together_are_found_as_alone(embedder: Embedder, decoder: PocketDecoder) -> None:
    adapted = adapt(two_labels(embedder), embedder, decoder, config=quick())
    query = embedder.open(draw_volume(seed=3))
    together = segment(query, adapted)
    for number, label in enumerate(together.labels):
        alone = segment(query, adapted, labels=[label])
        np.testing.assert_allclose(together.logits[number], alone.logits[0], atol=1e-4)
        assert together.dice[label] == pytest.approx(alone.dice[label], abs=1e-4)


# overlaps and parts


def test_the_highest_logit_has_the_voxel(embedder: Embedder) -> None:
    query = embedder.open(draw_volume())
    left, both = np.full((SLICES, 32, 32), -4.0), np.full((SLICES, 32, 32), -4.0)
    left[:, :, :20] = 3.0
    both[:, :, 12:] = 2.0
    found = assembled({"a": selected(left), "b": selected(both)}, query)
    assert found.labels == ("a", "b")
    assert (found.mask[:, :, 2:28] == 1).all()
    assert (found.mask[:, :, 32:-2] == 2).all()
    neither = assembled({"a": selected(-np.abs(left)), "b": selected(-np.abs(both))}, query)
    assert not neither.mask.any()


def test_a_sure_mask_expects_no_loss_and_a_vague_one_does() -> None:
    sure, vague, empty = np.full((1, 8, 8), -30.0), np.full((1, 8, 8), -2.0), np.full((1, 8, 8), -30.0)
    sure[:, 2:6, 2:6] = 30
    vague[:, 2:6, 2:6] = 0.4
    losses = [float(expected_loss(logits)[0]) for logits in (sure, vague, empty)]
    assert losses[0] == pytest.approx(0, abs=1e-4)
    assert losses[2] == pytest.approx(0, abs=1e-4)
    assert 0.3 < losses[1] < 1


# volumes of every kind


def test_between_annotated_slices_the_prior_leads(embedder: Embedder) -> None:
    support = {"organ": labelled(embedder, draw_volume(), ORGAN, (1, 3, 5, 7))}
    adapted = task_of(embedder, Echo(), support)
    found = segment(embedder.open(draw_volume()), adapted, support=support, config=EVERYTHING)
    assert dice(found.mask[[2, 4, 6]], ORGAN[[2, 4, 6]]) > 85


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "ILP"])
def test_the_storage_order_does_not_matter(embedder: Embedder, decoder: PocketDecoder, codes: str) -> None:
    """Storage along other axes is worked on in the same plane of the body, named."""
    volume = draw_volume()
    indices = (2, 4, 6)

    def found(volume: Volume, mask: np.ndarray) -> Volume:
        plane = Plane.named("axial", volume.grid)
        drawn = np.flatnonzero(plane.stack(mask).any(axis=(1, 2)))
        chosen = [int(index) for index in drawn]
        support = {"organ": labelled(embedder, volume, mask, chosen, plane=plane)}
        adapted = adapt(support, embedder, decoder, config=UNADAPTED)
        return volume.with_array(segment(embedder.open(volume, plane=plane), adapted, support=support).mask)

    mask = np.zeros_like(ORGAN)
    mask[list(indices)] = ORGAN[list(indices)]
    here = found(volume, mask)
    turned = reoriented(volume, codes)
    there = found(turned, reoriented(volume.with_array(mask.astype(np.uint8)), codes).array > 0)
    assert there.shape == turned.shape
    back = reoriented(there, "LPS")
    assert back.grid.matches(volume.grid)
    assert 0 < (here.array > 0).mean() < 1
    assert (back.array != here.array).mean() < 0.002


def test_an_image_of_one_slice(embedder: Embedder, decoder: PocketDecoder) -> None:
    flat = [Volume(draw_volume(seed).array[4:5], draw_volume().affine, modality="MR") for seed in (0, 1)]
    support = {"organ": labelled(embedder, flat[0], ORGAN[4:5], (0,))}
    adapted = adapt(support, embedder, decoder, config=quick())
    found = segment(embedder.open(flat[1]), adapted, support=support)
    assert found.mask.shape == (1, *ORGAN.shape[1:])
    own = segment(embedder.open(flat[0]), adapted, support=support)
    np.testing.assert_array_equal(own.mask == 1, ORGAN[4:5])


def test_some_slices_only(embedder: Embedder, decoder: PocketDecoder) -> None:
    adapted = task_of(embedder, Everywhere(), {"organ": labelled(embedder, draw_volume(), ORGAN, (4,))})
    query = embedder.open(draw_volume(seed=3))
    found = segment(query, adapted, slices=[6, 2], config=EVERYTHING)
    assert found.slices.tolist() == [2, 6]
    assert found.presence.shape == found.uncertainty.shape == (1, 2)
    assert found.mask.any(axis=(1, 2)).tolist() == [index in (2, 6) for index in range(SLICES)]
    assert query.done.tolist() == [index in (2, 6) for index in range(SLICES)]


def test_a_second_segmentation_encodes_nothing(embedder: Embedder, decoder: PocketDecoder) -> None:
    adapted, query = task_of(embedder, decoder, two_labels(embedder)), embedder.open(draw_volume(seed=3))
    first, before = segment(query, adapted), embedder.encoder.seen
    assert np.array_equal(segment(query, adapted).mask, first.mask)
    assert embedder.encoder.seen == before


def test_cancelling_stops_between_batches(embedder: Embedder, decoder: PocketDecoder) -> None:
    adapted = task_of(embedder, decoder, two_labels(embedder))

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "segment" and done:
            raise Cancelled

    with pytest.raises(Cancelled):
        segment(embedder.open(draw_volume()), adapted, progress=stop)


def test_the_harm_that_an_estimate_finds_is_avoided(
    embedder: Embedder, decoder: PocketDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssmsam.fewshot.pipeline as method
    from ssmsam.fewshot.estimate import Estimate

    monkeypatch.setattr(method, "cross_validated", lambda *_, **__: {"organ": Estimate(0.9, 0.2, 3)})
    adapted = adapt(two_labels(embedder), embedder, decoder, config=quick(folds=2))
    assert not adapted.card["adapted"]
    pairs = zip(adapted.decoder.state_dict().values(), decoder.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_label_that_no_slice_shows_is_refused(embedder: Embedder, decoder: PocketDecoder) -> None:
    support = {"organ": labelled(embedder, draw_volume(), np.zeros_like(ORGAN), (4,))}
    with pytest.raises(NothingToLearn, match="annotate at least one slice"):
        adapt(support, embedder, decoder)


# past the annotated slices


class Constant(PocketDecoder):
    """Answers the same everywhere."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(torch.full_like(context.prior[:, 0], self.logit), torch.full((len(context.prior),), self.logit))


def test_past_the_annotated_slices_the_unadapted_decoder_answers(embedder: Embedder) -> None:
    adapted = task_of(embedder, PocketDecoder(), {"organ": labelled(embedder, draw_volume(), ORGAN, (3, 5))})
    task, config = replace(adapted, decoder=Constant(2.0), initial=Constant(-1.0)), SegmentationConfig()
    query, other = embedder.open(draw_volume()), embedder.open(draw_volume(seed=3))
    found = propose(task, query, range(SLICES), config=config)["organ"]
    expected = np.where(np.isin(np.arange(SLICES), (3, 4, 5)), 2.0, -1.0)
    np.testing.assert_array_equal(found.logits.max(axis=(1, 2)), expected)
    np.testing.assert_allclose(found.presence, 1 / (1 + np.exp(-expected)), rtol=1e-5)
    elsewhere = propose(task, other, range(SLICES), config=config)["organ"]
    assert (elsewhere.logits == 2.0).all()  # nothing is annotated there: nothing is past it


@pytest.mark.parametrize(("steps", "pretrained"), [(2, True), (2, False), (0, True)])
def test_a_checkpoint_knows_its_start_where_it_was_adapted_from_one_that_knows_something(
    embedder: Embedder, tmp_path: Path, steps: int, pretrained: bool
) -> None:
    decoder = PocketDecoder()
    decoder.pretrained = pretrained
    support = {"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}
    made = adapt(support, embedder, decoder, config=replace(UNADAPTED, adaptation=replace(QUICK, steps=steps)))
    read = kept_and_read(made, tmp_path, decoder)
    for adapted in (made, read):
        assert adapted.initial is (decoder if steps and pretrained else None)
