"""Labelled volumes that the model completes before it turns to other volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from planted import ORGAN, SLICES, PocketDecoder, draw_volume, kept_and_read, labelled, quick

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import FewShotConfig, PseudoLabelConfig, SegmentationConfig, SupportBankConfig
from ssmsam.fewshot.pipeline import adapt, segment, slices_to_pseudo_label, with_pseudo_labels
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.fewshot_decoder import Proposal

EVERY_SLICE = PseudoLabelConfig(slices=SLICES, spacing_mm=5.0)
UNADAPTED = quick(
    adaptation=replace(quick().adaptation, steps=0),
    pseudo_labels=EVERY_SLICE,
    segmentation=SegmentationConfig(volume_head=False, own_slices=0),
)
SPARSE = replace(UNADAPTED, pseudo_labels=PseudoLabelConfig(slices=0))


class Echo(PocketDecoder):
    """Answers with its prior."""

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(context.prior[:, 0], torch.ones(len(context.prior)))


def task(
    embedder: Embedder, decoder: PocketDecoder, config: FewShotConfig, indices: tuple[int, ...] = (2, 4, 6)
) -> AdaptedTask:
    return adapt({"organ": labelled(embedder, draw_volume(), ORGAN, indices)}, embedder, decoder, config=config)


def slices_of(embedder: Embedder, seed: int, indices: Sequence[int]) -> list[LabelledSlice]:
    return labelled(embedder, draw_volume(seed), ORGAN, indices)


def test_other_slices_of_the_labelled_volume_join_the_bank_as_they_were_found(embedder: Embedder) -> None:
    query = embedder.open(draw_volume())
    sparse, dense = (task(embedder, Echo(), config, (0, 2, 4, 6, 8)) for config in (SPARSE, UNADAPTED))
    bank = dense.banks["organ"]
    found = segment(query, sparse, config=UNADAPTED).mask == 1
    assert bank.pseudo_labelled.tolist() == [False] * 5 + [True] * 4
    assert [round(float(mm) / query.slice_mm) for mm in bank.positions[5:]] == [1, 3, 5, 7]
    assert bank.shows[5:].tolist() == [bool(found[index].any()) for index in (1, 3, 5, 7)]
    assert bank.shows[5:].any() and not bank.shows[5:].all()


def test_the_labelled_volume_itself_is_segmented_as_without(embedder: Embedder, decoder: PocketDecoder) -> None:
    query = embedder.open(draw_volume())
    sparse, dense = (task(embedder, decoder, config) for config in (SPARSE, UNADAPTED))
    found, expected = (segment(query, one, config=UNADAPTED) for one in (dense, sparse))
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_what_is_completed_later_is_the_same(embedder: Embedder, decoder: PocketDecoder) -> None:
    support = {"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}
    query = embedder.open(draw_volume(seed=3))
    at_once = adapt(support, embedder, decoder, config=UNADAPTED)
    sparse = adapt(support, embedder, decoder, pseudo_labels=False, config=UNADAPTED)
    assert sparse.lacks(query.key.digest) == ("organ",)
    assert not sparse.lacks(support["organ"][0].volume)
    later = with_pseudo_labels(sparse, support, config=UNADAPTED)
    assert not later.lacks(query.key.digest)
    np.testing.assert_array_equal(segment(query, later).logits, segment(query, at_once).logits)
    assert with_pseudo_labels(later, support, config=UNADAPTED).banks["organ"] is later.banks["organ"]


def test_a_volume_that_a_checkpoint_does_not_know_is_not_completed(embedder: Embedder, decoder: PocketDecoder) -> None:
    first, second = (labelled(embedder, draw_volume(seed), ORGAN, (2, 4, 6)) for seed in (0, 1))
    sparse = adapt({"organ": first}, embedder, decoder, pseudo_labels=False, config=UNADAPTED)
    bank = with_pseudo_labels(sparse, {"organ": [*first, *second]}, config=UNADAPTED).banks["organ"]
    assert set(bank.volumes) == {first[0].volume}
    assert not with_pseudo_labels(sparse, {}, config=UNADAPTED).banks["organ"].pseudo_labelled.any()


def test_queries_are_not_shown_them(embedder: Embedder, decoder: PocketDecoder) -> None:
    bank = task(embedder, decoder, UNADAPTED).banks["organ"]
    alike = bank.descriptors[int(np.flatnonzero(bank.pseudo_labelled)[0])][None]
    for volume in ("another", bank.volumes[0]):
        context = bank.context_at(volume, [0.0], alike, np.zeros((1, 2)), config=SupportBankConfig())
        assert context.tokens.shape[1] == 3 * bank.encoding.tokens.shape[1]


def test_a_checkpoint_remembers_which_slices_nobody_labelled(
    embedder: Embedder, decoder: PocketDecoder, tmp_path: Path
) -> None:
    made = task(embedder, decoder, UNADAPTED)
    read = kept_and_read(made, tmp_path, decoder)
    query = embedder.open(draw_volume(seed=3))
    assert read.banks["organ"].pseudo_labelled.tolist() == made.banks["organ"].pseudo_labelled.tolist()
    np.testing.assert_array_equal(segment(query, read).logits, segment(query, made).logits)


def test_what_is_completed_is_bounded(embedder: Embedder) -> None:
    few, many, every = (2, 4), (2, 4, 6), range(SLICES)
    several = [one for seed, k in enumerate((many, few, many, every, many)) for one in slices_of(embedder, seed, k)]
    chosen = list(slices_to_pseudo_label(several, PseudoLabelConfig(slices=4, spacing_mm=5.0, volumes=3)))
    # the three with most labelled slices; of one of them nothing is left
    assert [volume.volume.digest for volume, _ in chosen] == [draw_volume(seed).digest for seed in (0, 2)]
    assert all(0 < len(slices) <= 4 and not set(slices) & set(many) for _, slices in chosen)
    far_apart = [slices for _, slices in slices_to_pseudo_label(several, PseudoLabelConfig(spacing_mm=20.0))]
    assert all((np.diff(slices) * 5.0 >= 15.0).all() for slices in far_apart)
    assert not list(slices_to_pseudo_label(slices_of(embedder, 0, every), EVERY_SLICE))
