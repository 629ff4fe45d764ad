"""Labelled volumes that the model completes before it turns to other volumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from planted import ORGAN, SLICES, PocketDecoder, draw_volume, labelled, quick

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.bank import BankConfig
from ssmsam.fewshot.completion import CompletionConfig, worth_completing
from ssmsam.fewshot.decoder import Proposal
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.method import FewShotConfig, adapt, segment

EVERY_SLICE = CompletionConfig(slices=SLICES, spacing_mm=5.0)
UNADAPTED = quick(adaptation=replace(quick().adaptation, steps=0), completion=EVERY_SLICE)
SPARSE = replace(UNADAPTED, completion=CompletionConfig(slices=0))


class Echo(PocketDecoder):
    """Answers with its prior."""

    def forward(self, embedding, shown, corrections=None, reading=None) -> Proposal:
        return Proposal(shown.prior[:, 0], torch.ones(len(shown.prior)))


def head(embedder: Embedder, decoder: PocketDecoder, config: FewShotConfig, indices=(2, 4, 6)) -> Head:
    return adapt({"organ": labelled(embedder, draw_volume(), ORGAN, indices)}, embedder, decoder, config=config)


def test_other_slices_of_the_labelled_volume_join_the_bank_as_they_were_found(embedder: Embedder) -> None:
    query = embedder.open(draw_volume())
    sparse, dense = (head(embedder, Echo(), config, (0, 2, 4, 6, 8)) for config in (SPARSE, UNADAPTED))
    bank = dense.banks["organ"]
    found = segment(query, sparse, config=UNADAPTED).mask == 1
    assert bank.completed.tolist() == [False] * 5 + [True] * 4
    assert [round(float(mm) / query.slice_mm) for mm in bank.positions[5:]] == [1, 3, 5, 7]
    assert bank.shows[5:].tolist() == [bool(found[index].any()) for index in (1, 3, 5, 7)]
    assert bank.shows[5:].any() and not bank.shows[5:].all()


def test_the_labelled_volume_itself_is_segmented_as_without(embedder: Embedder, decoder: PocketDecoder) -> None:
    query = embedder.open(draw_volume())
    sparse, dense = (head(embedder, decoder, config) for config in (SPARSE, UNADAPTED))
    found, expected = (segment(query, one, config=UNADAPTED) for one in (dense, sparse))
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_another_volume_is_shown_the_most_alike_of_all(embedder: Embedder, decoder: PocketDecoder) -> None:
    bank = head(embedder, decoder, UNADAPTED).banks["organ"]
    found = int(np.flatnonzero(bank.completed)[0])
    config = BankConfig(others=1)
    elsewhere = bank.shown("another", [0.0], bank.looks[found][None], config=config)
    torch.testing.assert_close(elsewhere.cells[0], bank.description.cells[found])
    here = bank.shown(bank.volumes[0], [0.0], bank.looks[found][None], config=BankConfig())
    assert here.tokens.shape[1] == 3 * bank.description.tokens.shape[1]


def test_a_head_remembers_which_slices_nobody_labelled(embedder: Embedder, decoder: PocketDecoder, tmp_path) -> None:
    made = head(embedder, decoder, UNADAPTED)
    path = made.save(tmp_path / "head.safetensors")
    read = Head.load(path, decoder, weights_sha256=embedder.encoder.weights_sha256)
    query = embedder.open(draw_volume(seed=3))
    assert read.banks["organ"].completed.tolist() == made.banks["organ"].completed.tolist()
    np.testing.assert_array_equal(segment(query, read).logits, segment(query, made).logits)


def test_what_is_completed_is_bounded(embedder: Embedder) -> None:
    several = [one for seed in range(4) for one in labelled(embedder, draw_volume(seed), ORGAN, (3, 4)[: 1 + seed % 2])]
    chosen = list(worth_completing(several, CompletionConfig(slices=3, spacing_mm=5.0, volumes=3)))
    assert len(chosen) == 3
    assert {len(slices) for _, slices in chosen} <= {2, 3}
    far_apart = [slices for _, slices in worth_completing(several, CompletionConfig(spacing_mm=20.0))]
    assert all((np.diff(slices) * 5.0 >= 15.0).all() for slices in far_apart)
    assert not list(worth_completing(labelled(embedder, draw_volume(), ORGAN, range(SLICES)), EVERY_SLICE))
