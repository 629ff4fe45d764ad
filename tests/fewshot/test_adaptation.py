"""Fitting the decoder: on cached embeddings, to what is known, and without a trace when it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import (
    ALL,
    ORGAN,
    QUICK,
    PocketDecoder,
    adapted_digest,
    ball,
    draw_volume,
    labelled,
    state_digest,
    tasks_of,
    two_labels,
)

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import fit, proposal_loss
from ssmsam.fewshot.config import ViewConfig
from ssmsam.models.fewshot_decoder import Proposal
from ssmsam.progress import Cancelled


def test_the_encoder_does_not_run(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of(two_labels(embedder), embedder, decoder)
    before = embedder.encoder.seen
    assert before > 0
    assert len(fit(decoder, tasks, QUICK).losses) == QUICK.steps
    assert embedder.encoder.seen == before


def test_the_loss_falls_on_a_planted_object(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of(two_labels(embedder), embedder, decoder)
    losses = fit(decoder, tasks, replace(QUICK, steps=30, batch=6)).losses
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_only_a_copy_changes_and_only_what_adapts(embedder: Embedder, decoder: PocketDecoder) -> None:
    before = state_digest(decoder)
    fitted = fit(decoder, tasks_of(two_labels(embedder), embedder, decoder), QUICK).decoder
    assert state_digest(decoder) == before
    adaptable = {id(parameter) for parameter in fitted.adaptable()}
    old = dict(decoder.named_parameters())
    for name, new in fitted.named_parameters():
        if id(new) not in adaptable:
            assert torch.equal(new, old[name]), name
    assert any(not torch.equal(new, old[name]) for name, new in fitted.named_parameters())
    assert not fitted.training
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


@pytest.mark.parametrize("last", [0, 2])
def test_cancelling_leaves_the_decoder_as_it_was(embedder: Embedder, decoder: PocketDecoder, last: int) -> None:
    tasks, before = tasks_of(two_labels(embedder), embedder, decoder), state_digest(decoder)
    seen = []

    def stop(phase: str, done: int, total: int) -> None:
        seen.append((phase, done, total))
        if done == last:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(decoder, tasks, QUICK, progress=stop)
    assert seen == [("adapt", step, QUICK.steps) for step in range(last + 1)]
    assert state_digest(decoder) == before
    assert not decoder.training


def test_the_time_budget_is_kept(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of(two_labels(embedder), embedder, decoder)
    assert fit(decoder, tasks, replace(QUICK, budget_s=0.0)).losses == ()
    fitted = fit(decoder, tasks, replace(QUICK, steps=10**6, budget_s=0.5))
    assert 0 < len(fitted.losses) < 10**6
    assert fitted.seconds < 5


def test_two_runs_give_the_same_bits_here_and_in_another_process() -> None:
    threads = torch.get_num_threads()
    try:
        here = adapted_digest()
        assert adapted_digest() == here
    finally:
        torch.set_num_threads(threads)
    import ssmsam

    paths = [str(Path(ssmsam.__path__[0]).parent), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    script = [sys.executable, str(Path(__file__).with_name("planted.py"))]
    there = subprocess.run(script, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert there.stdout == here


def test_another_seed_is_another_run(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of(two_labels(embedder), embedder, decoder)
    one, other = (fit(decoder, tasks, replace(QUICK, seed=seed)).decoder for seed in (0, 1))
    assert state_digest(one) != state_digest(other)


@pytest.mark.parametrize("views", [0, 2])
def test_a_single_slice_is_enough(embedder: Embedder, decoder: PocketDecoder, views: int) -> None:
    config = replace(QUICK, steps=20, views=ViewConfig(views=views))
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (4,))}, embedder, decoder, config)
    losses = fit(decoder, tasks, config).losses
    assert losses[-1] < losses[0]


def test_one_slice_with_the_label_among_empty_ones(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (0, 4, 8))}, embedder, decoder)
    assert np.isfinite(fit(decoder, tasks, QUICK).losses).all()


def test_slices_of_two_volumes_and_planes(embedder: Embedder, decoder: PocketDecoder) -> None:
    from ssmsam.volume.geometry import Plane

    slices = labelled(embedder, draw_volume(), ORGAN, (3, 5)) + labelled(embedder, draw_volume(1), ORGAN, (4,))
    slices += labelled(embedder, draw_volume(), ORGAN, (16,), plane=Plane(2))
    tasks = tasks_of({"organ": slices}, embedder, decoder)
    assert len(set(tasks["organ"][0].bank.volumes)) == 3
    assert np.isfinite(fit(decoder, tasks, QUICK).losses).all()


def test_held_out_slices_leave_no_trace(embedder: Embedder, decoder: PocketDecoder) -> None:
    """Not even when a single slice is left to learn from."""
    slices = labelled(embedder, draw_volume(), ORGAN, (3, 4, 5))
    for held_out in ((0,), (0, 2)):
        garbage = list(slices)
        for number in held_out:
            garbage[number] = replace(slices[number], mask=ball((4, 8, 40), (9, 6, 6))[slices[number].index])
        fitted = [
            fit(decoder, tasks_of({"organ": one}, embedder, decoder), QUICK, held_out={"organ": held_out}).decoder
            for one in (slices, garbage)
        ]
        assert state_digest(fitted[0]) == state_digest(fitted[1])


def test_a_slice_alone_is_shown_in_another_view_than_its_own(
    embedder: Embedder, decoder: PocketDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssmsam.fewshot.episodes import AdaptationTask

    config = replace(QUICK, steps=12, views=ViewConfig(views=2))
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (4,))}, embedder, decoder, config)
    queried = []
    plain = AdaptationTask.query_batch_from

    def noted(self: AdaptationTask, numbers, other: AdaptationTask, **hidden):
        queried.append((self, other))
        return plain(self, numbers, other, **hidden)

    monkeypatch.setattr(AdaptationTask, "query_batch_from", noted)
    fit(decoder, tasks, config)
    assert len(queried) == config.steps
    assert all(one is not other for one, other in queried)


def test_unknown_pixels_carry_no_gradient() -> None:
    logits = torch.zeros(2, 8, 8, requires_grad=True)
    target, weight = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    target[:, :, 2:5, 2:7] = 1
    weight[:, :, :, 4:] = 0
    proposal_loss(Proposal(logits, torch.zeros(2)), target, weight).backward()
    assert not logits.grad[:, :, 4:].any()
    assert logits.grad[:, :, :4].all()
    garbage = target.clone()
    garbage[:, :, :, 4:] = 1
    losses = [proposal_loss(Proposal(logits, torch.zeros(2)), one, weight) for one in (target, garbage)]
    torch.testing.assert_close(*losses)


def test_every_slice_of_a_volume_may_be_labelled(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, ALL)}, embedder, decoder)
    assert np.isfinite(fit(decoder, tasks, replace(QUICK, batch=12)).losses).all()
