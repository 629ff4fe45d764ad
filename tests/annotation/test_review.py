"""Who worked for how long, second opinions, and agreement of two people."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from submissions import GRID, drawn

from ssmsam.annotation.annotations import Annotations, SliceAnnotation, SliceKey, Source, Update
from ssmsam.annotation.log import PAUSE_S, Review, ReviewVerdict, Served, Worker, WorkLog, WorkSummary, agreement
from ssmsam.ops import PackedMask

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=float(seconds))).isoformat(timespec="microseconds")


@given(st.lists(st.integers(0, int(3 * PAUSE_S)), max_size=20))
def test_pauses_are_no_work(gaps: list[int]) -> None:
    times = np.cumsum([0, *gaps])
    worker = Worker(at(0))
    for seconds in times:
        worker = worker.after(at(seconds))
    assert worker.seconds == pytest.approx(sum(gap for gap in gaps if gap <= PAUSE_S), abs=0.1)
    assert worker.last == at(times[-1])


def test_a_clock_that_was_set_back_takes_nothing_away() -> None:
    worker = Worker(at(100), 40.0).after(at(50))
    assert (worker.last, worker.seconds) == (at(100), 40.0)


def test_the_log_counts_each_person(tmp_path: Path) -> None:
    log = WorkLog(tmp_path)
    assert log.summary("case") == WorkSummary()
    log.open("case", "a", at(0), who="a")
    log.serve("case", Served.of(drawn(2) > 0, label="liver", client="a", when=at(30)), who="a")
    log.worked("case", "a", at(60))
    log.open("case", "b", at(70), who="b")
    log.expect("case", {"liver": 0.9, "spleen": 0.5})
    log.expect("case", {"liver": 0.8})
    found = WorkLog(tmp_path).summary("case")
    assert found.workers == {"a": Worker(at(60), 60.0, True), "b": Worker(at(70), 0.0, False)}
    assert found.expected == {"liver": 0.8, "spleen": 0.5}
    assert not found.accepted(3)
    for verdict, revision in ((ReviewVerdict.SEND_BACK, 3), (ReviewVerdict.ACCEPT, 4)):
        log.review("case", Review(verdict, "b", at(80), revision, "smaller"))
        assert log.summary("case").review == Review(verdict, "b", at(80), revision, "smaller")
    assert [log.summary("case").accepted(revision) for revision in (3, 4, 5)] == [False, True, False]


def said(
    known: Annotations, client: str, masks: dict[int, np.ndarray], *, source: Source = Source.CLIENT
) -> Annotations:
    entries = {
        SliceKey("liver", 0, index): SliceAnnotation(PackedMask.of(mask), source, client, at(0))
        for index, mask in masks.items()
    }
    return known.merge(Update(GRID, entries, client=client, when=at(0), labels=frozenset({"liver"})))


@given(seed=st.integers(0, 999), k=st.integers(0, GRID.shape[0] - 1))
def test_agreement_is_dice_and_the_same_from_both_sides(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (random.random(GRID.shape[1:]) < 0.5 for _ in range(2))
    other[0, 0] = not one[0, 0]
    (found,) = agreement(said(said(Annotations(GRID), "a", {k: one}), "b", {k: other}))
    (back,) = agreement(said(said(Annotations(GRID), "b", {k: other}), "a", {k: one}))
    assert found.dice == back.dice == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))
    assert (found.clients, found.slices) == (("a", "b"), (SliceKey("liver", 0, k),))
    assert found.per_slice == (found.dice,)


def test_only_what_both_drew_counts_and_the_last_of_each() -> None:
    full, half = np.ones(GRID.shape[1:], bool), np.ones(GRID.shape[1:], bool)
    half[: len(half) // 2] = False
    nothing = np.zeros_like(full)
    known = said(Annotations(GRID), "a", {1: nothing, 2: half, 3: full, 4: nothing})
    known = said(known, "a", {1: full})
    known = said(known, "b", {1: half, 3: half})
    known = said(known, "b", {2: nothing, 4: full}, source=Source.COMPLETE)
    (found,) = agreement(known)
    assert [key.index for key in found.slices] == [1, 3]
    assert found.dice == pytest.approx(2 / 3, abs=0.1)
    assert agreement(said(Annotations(GRID), "a", {1: full})) == []
    assert agreement(replace(known, revisions=())) == []
