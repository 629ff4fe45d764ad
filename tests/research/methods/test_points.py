"""Points in place of labelled slices: what the annotator tells, and where nobody clicks."""

from __future__ import annotations

import numpy as np
import pytest
from bench import ORGAN, Bench, draw_volume

from ssmsam.cli.annotator import Click
from ssmsam_research.methods.points import Clicker, PointPrompts
from ssmsam_research.metrics import dice
from ssmsam_research.protocols.episode import Episode
from ssmsam_research.protocols.fewshot_task import Support, Task

ANNOTATED = [6, 12]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(draw_volume())


@pytest.fixture(scope="module")
def task(bench: Bench) -> Task:
    return Task(supports=(Support.from_labels(bench.volume, ORGAN, ANNOTATED),), query=bench.volume)


class Counting(Clicker):
    """Notes which slices it was asked about."""

    def __init__(self, truth: np.ndarray) -> None:
        super().__init__(truth, pixel_mm=(1.0, 1.0))
        self.asked: list[int] = []

    def next_click(self, index: int, mask: np.ndarray, clicked: list[Click]) -> Click | None:
        click = super().next_click(index, mask, clicked)
        self.asked += [index] if click else []
        return click


def test_every_slice_of_the_organ_but_the_annotated_ones_is_clicked_on(bench: Bench, task: Task) -> None:
    clicker = Counting(ORGAN)
    found = PointPrompts(bench.embedder, bench.decoder, clicks=1).segment_clicked(task, clicker)
    shows = set(np.flatnonzero(ORGAN.any(axis=(1, 2))).tolist())
    assert clicker.asked == sorted(shows - set(ANNOTATED))
    assert not found[[index for index in range(len(found)) if index not in shows]].any()
    assert dice(task.finished(found), ORGAN) > 90


def test_no_more_clicks_are_made_than_are_allowed_or_needed(bench: Bench, task: Task) -> None:
    clicker = Counting(ORGAN)
    PointPrompts(bench.embedder, bench.decoder, clicks=3).segment_clicked(task, clicker)
    counts = np.bincount(clicker.asked, minlength=len(ORGAN))
    assert counts.max() <= 3
    perfect = Counting(ORGAN)
    assert perfect.next_click(9, ORGAN[9], []) is None


def test_an_episode_clicks_for_a_method_that_lives_by_clicks(bench: Bench, task: Task) -> None:
    every = {"all slices": np.ones(len(ORGAN), dtype=bool)}
    points = PointPrompts(bench.embedder, bench.decoder)
    right = Episode("organ", "setting", task, ORGAN, every).measure(points)
    nothing = Episode("organ", "setting", task, np.zeros_like(ORGAN), every).measure(points)
    assert right["dice"]["all slices"] > 90
    assert nothing["dice"]["all slices"] == 0, "the annotated slices stay, and nobody clicks elsewhere"
