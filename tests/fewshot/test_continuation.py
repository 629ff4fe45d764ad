"""Masks past annotated ends: what speaks for them, what is left out, and what is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import SLICES, PocketDecoder, ball, draw_volume, labelled, quick

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.continuation import AnnotatedEnd, Claim, ContinuationConfig, past_the_annotated
from ssmsam.fewshot.finding import find
from ssmsam.fewshot.method import adapt, segment
from ssmsam.fewshot.proposals import Proposals

N, SIDE = 12, 32
ROWS = np.arange(N)
SHOWN = np.isin(ROWS, (4, 6, 8))
NEVER, ALWAYS = ContinuationConfig(least_chance=1.0), ContinuationConfig(least_chance=0.0)
BLUNT = Claim(presence=4.0, loss=0.02, loss_between=0.02, shrinks_mm=3.0, area=0.0, overlap=0.9)
"""A mask like the last annotated one, of a target that does not shrink, of which the decoder is sure."""


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return (y - 16) ** 2 + (x - 16) ** 2 < radius**2


def proposals(radii: list[float], *, presence: float = 0.95, sharp: float = 8.0) -> tuple[np.ndarray, Proposals]:
    masks = np.stack([disc(radius) for radius in radii])
    logits = np.where(masks, sharp, -sharp).astype(np.float32)
    return masks, Proposals(ROWS, logits, np.full(N, presence), np.eye(N, 4))


def left_out(radii: list[float], config: ContinuationConfig | None = None, **more) -> tuple[list[int], list[int]]:
    shown, empty = more.pop("shown", SHOWN), more.pop("empty", np.zeros(N, dtype=bool))
    masks, proposed = proposals(radii, **more)
    return past_the_annotated(masks, proposed, shown, empty, 5.0, config or ContinuationConfig())


def test_past_an_end_everything_from_the_first_doubtful_slice_on_goes_and_that_one_is_asked() -> None:
    rows, asked = left_out([8.0] * N, NEVER)
    assert sorted(rows) == [0, 1, 2, 3, 9, 10, 11]
    assert sorted(asked) == [3, 9]
    assert left_out([8.0] * N, ALWAYS) == ([], [])


def test_an_end_that_was_answered_is_left_alone() -> None:
    assert left_out([8.0] * N, NEVER, empty=ROWS == 11)[1] == [3]


def test_one_or_two_annotated_slices_say_nothing_of_ends() -> None:
    assert left_out([8.0] * N, NEVER, shown=np.isin(ROWS, (4, 8))) == ([], [])


def test_where_nothing_is_proposed_nothing_is_asked() -> None:
    radii = [0.0 if row in (3, 9) else 8.0 for row in ROWS]
    assert left_out(radii, NEVER) == ([], [])


def test_what_is_about_to_end_ends_and_what_is_cut_through_goes_on() -> None:
    tapering = [4.0, 4.0, 4.0, 4.0, 3.0, 6.0, 9.0, 6.0, 3.0, 4.0, 4.0, 4.0]
    assert sorted(left_out(tapering)[1]) == [3, 9]
    blunt = [9.0] * N
    assert not {3, 9} & set(left_out(blunt)[1])


@pytest.mark.parametrize(
    "weaker",
    [{"presence": -2.0}, {"loss": 0.3}, {"loss_between": 0.3}, {"shrinks_mm": -1.0}, {"area": 1.0}, {"overlap": 0.0}],
)
def test_each_piece_of_evidence_counts_in_its_direction(weaker: dict[str, float]) -> None:
    config = ContinuationConfig()
    assert config.chance(replace(BLUNT, **weaker)) < config.chance(BLUNT)
    assert config.chance(BLUNT) > 0.7


def test_a_radius_that_falls_is_followed_to_nothing() -> None:
    end = AnnotatedEnd(range(9, N), 8, disc(4.0), 6, int(disc(8.0).sum()))
    assert end.shrinks_over(ROWS, 5.0) == pytest.approx(10.0, rel=0.1), "from 8 to 4 cells in 10 mm"
    end = AnnotatedEnd(range(9, N), 8, disc(8.0), 6, int(disc(4.0).sum()))
    assert end.shrinks_over(ROWS, 5.0) == 100.0, "it grows"


def test_a_person_is_asked_about_what_was_left_out(embedder: Embedder, decoder: PocketDecoder) -> None:
    volume = draw_volume()
    support = {"a": labelled(embedder, volume, ball((4, 24, 13), (4, 9, 9)), (3, 4, 5))}
    plain = quick(adaptation=replace(quick().adaptation, steps=0))
    head = adapt(support, embedder, decoder, config=plain)
    for chance in (0.0, 1.0):
        segmentation = replace(plain.segmentation, continuation=ContinuationConfig(least_chance=chance))
        config = replace(plain, segmentation=replace(segmentation, least_presence=0.0))
        found = segment(embedder.open(volume), head, support=support, config=config)
        drawn = np.flatnonzero(found.mask.any(axis=(1, 2)))
        if chance:
            assert drawn.tolist() == [3, 4, 5]
            assert set(found.asked.get("a", ())) <= {2, 6}


def test_stopping_where_a_target_ends_changes_no_mask(embedder: Embedder, decoder: PocketDecoder) -> None:
    volume = draw_volume()
    query = embedder.open(volume)
    support = {
        "a": labelled(embedder, volume, ball((4, 24, 13), (4, 9, 9)), (3, 5)),
        "b": labelled(embedder, volume, ball((6, 12, 30), (4, 6, 6)), (5, 6, 7)),
    }
    head = adapt(support, embedder, decoder, config=quick(adaptation=replace(quick().adaptation, steps=0)))
    for least in (0.0, 0.5, None):
        config = replace(quick().segmentation, least_presence=least, batch=2)
        whole, short = (find(head, query, range(SLICES), config=config, up_to_ends=stops) for stops in (False, True))
        for label in support:
            np.testing.assert_array_equal(whole[label].final.logits > 0, short[label].final.logits > 0)
