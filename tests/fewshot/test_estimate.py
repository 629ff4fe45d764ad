"""How good an adaptation is on slices that it did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ORGAN, OTHER, QUICK, PocketDecoder, draw_volume, labelled, state_digest, tasks_of

import ssmsam.fewshot.estimate as estimating
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.estimate import Estimate, cross_validated, overlap, worth_it
from ssmsam.models.fewshot_decoder import Proposal
from ssmsam.progress import Cancelled


class Echo(PocketDecoder):
    """Answers with its prior."""

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        return Proposal(context.prior[:, 0], torch.ones(len(context.prior)))


def test_each_slice_is_held_out_once_and_neither_learned_from_nor_shown(
    embedder: Embedder, decoder: PocketDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = labelled(embedder, draw_volume(), ORGAN, (0, 2, 3, 4, 5, 8))
    tasks = tasks_of({"organ": slices}, embedder, decoder)
    held, judged = [], []
    fit, plain = estimating.fit, estimating.overlap

    def noted_fit(*args, held_out, **rest):
        held.append(held_out["organ"])
        return fit(*args, held_out=held_out, **rest)

    def noted_overlap(one, adaptation_task, numbers):
        judged.append((state_digest(one), tuple(numbers)))
        return plain(one, adaptation_task, numbers)

    monkeypatch.setattr(estimating, "fit", noted_fit)
    monkeypatch.setattr(estimating, "overlap", noted_overlap)
    found = cross_validated(decoder, tasks, QUICK, folds=2)
    assert sorted(held[0] + held[1]) == list(range(len(slices)))
    shows = tasks["organ"][0].bank.shows
    assert all(0 < shows[list(fold)].sum() < shows.sum() for fold in held)
    stops = len(estimating.STOPS)
    assert [numbers for _, numbers in judged] == [held[0]] * (1 + stops) + [held[1]] * (1 + stops)
    assert judged[0][0] == judged[1 + stops][0] == state_digest(decoder)
    assert len({digest for digest, _ in judged}) == 3, "one step a fold: all stops are the same"
    assert found["organ"].slices == len(slices)


def test_without_steps_nothing_is_fitted_and_the_estimate_is_of_the_decoder_as_it_is(
    embedder: Embedder, decoder: PocketDecoder
) -> None:
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (3, 4, 5))}, embedder, decoder)
    found = cross_validated(decoder, tasks, replace(QUICK, steps=0), folds=2)["organ"]
    assert found.before == found.after == cross_validated(decoder, tasks, QUICK, folds=2)["organ"].before
    assert found.slices == 3


def test_overlap_is_counted_against_what_the_others_say(embedder: Embedder) -> None:
    echo = Echo()
    adaptation_task = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (3, 4, 5))}, embedder, echo)["organ"][
        0
    ]
    masks = adaptation_task.masks[:, 0].numpy() > 0.5
    between = (adaptation_task.bank.distances[0] + adaptation_task.bank.distances[2]) / 2 > 0
    twice, sums = overlap(echo, adaptation_task, [1])
    assert (twice, sums) == (2 * (between & masks[1]).sum(), between.sum() + masks[1].sum())
    alone, _ = overlap(echo, adaptation_task, [0, 1, 2])
    assert alone == 0, "with all hidden nothing is said"


def test_labels_on_too_few_slices_get_no_estimate(embedder: Embedder, decoder: PocketDecoder) -> None:
    many = labelled(embedder, draw_volume(), ORGAN, (3, 4, 5))
    few = labelled(embedder, draw_volume(), OTHER, (4, 5))
    found = cross_validated(decoder, tasks_of({"a": many, "b": few}, embedder, decoder), QUICK, folds=2)
    assert set(found) == {"a"}
    assert cross_validated(decoder, tasks_of({"b": few}, embedder, decoder), QUICK, folds=2) == {}


def test_estimates_decide() -> None:
    assert worth_it({})
    assert worth_it({"a": Estimate(0.5, 0.7, 4), "b": Estimate(0.5, 0.4, 4)})
    assert not worth_it({"a": Estimate(0.5, 0.5, 4), "b": Estimate(0.5, 0.4, 4)})


def test_unknown_pixels_are_not_judged(embedder: Embedder) -> None:
    known = np.zeros(ORGAN.shape, bool)
    known[:, :, :16] = True
    echo = Echo()
    adaptation_task = tasks_of({"a": labelled(embedder, draw_volume(), ORGAN, (3, 4, 5), known=known)}, embedder, echo)[
        "a"
    ][0]
    whole = tasks_of({"a": labelled(embedder, draw_volume(), ORGAN, (3, 4, 5))}, embedder, echo)["a"][0]
    assert 0 < overlap(echo, adaptation_task, [1])[1] < overlap(echo, whole, [1])[1]


def test_cancelling_stops_between_steps(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (3, 4, 5))}, embedder, decoder)

    def stop(phase: str, done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        cross_validated(decoder, tasks, replace(QUICK, steps=4), folds=2, progress=stop)


def test_adaptation_stops_where_held_out_slices_were_judged_best(
    embedder: Embedder, decoder: PocketDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 3, 4, 5))}, embedder, decoder)
    config = replace(QUICK, steps=12)
    unadapted = state_digest(decoder)
    halfway = {
        state_digest(fit(decoder, tasks, replace(config, steps=6), held_out={"organ": held}, share=2 / 3).decoder)
        for held in ((0, 2), (1, 3))
    }
    monkeypatch.setattr(
        estimating,
        "overlap",
        lambda one, *_: np.array([{True: 9.0, False: 5.0}[state_digest(one) in halfway | {unadapted}], 10.0]),
    )
    assert cross_validated(decoder, tasks, config, folds=2)["organ"].share == pytest.approx(2 / 3)


def test_without_time_no_stop_looks_better_than_it_is(embedder: Embedder, decoder: PocketDecoder) -> None:
    tasks = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 3, 4, 5))}, embedder, decoder)
    found = cross_validated(decoder, tasks, replace(QUICK, steps=12, budget_s=0.0), folds=2)["organ"]
    assert found.after == found.before
    assert found.share == 1.0
