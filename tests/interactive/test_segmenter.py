"""One slice: the right candidate, and a mask that keeps to the prompts."""

from __future__ import annotations

import numpy as np
import pytest
from bench import ORGAN, OTHER, SATELLITE, Bench

from fakes import SIZE
from ssmsam.interactive.segmenter import choose, correct_slice, satisfied, segment_slice
from ssmsam.models.prompt_decoder import SlicePrompt


def prompt(positive: list = [], negative: list = [], box: tuple | None = None) -> SlicePrompt:  # noqa: B006
    return SlicePrompt(np.reshape(positive, (-1, 2)), np.reshape(negative, (-1, 2)), box)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_click_finds_the_organ(bench: Bench) -> None:
    answer = segment_slice(bench.embeddings, bench.decoder, 9, prompt([[20, 30]]))
    assert dice(answer.mask, ORGAN[9]) > 0.95
    assert answer.mask.dtype == bool
    assert answer.logits.shape == (1, 1, SIZE, SIZE)
    assert not answer.corrected


def test_a_box_finds_the_organ_and_nothing_outside(bench: Bench) -> None:
    answer = segment_slice(bench.embeddings, bench.decoder, 9, prompt(box=(9, 22, 31, 38)))
    assert dice(answer.mask[22:39], ORGAN[9][22:39]) > 0.95
    assert not answer.mask[:20].any()
    assert not answer.mask[41:].any()


@pytest.mark.parametrize(
    "clicked",
    [
        prompt([[20, 30]], [[22, 32]]),
        prompt([[20, 30], [50, 34], [60, 60]]),
        prompt([[2, 2]], [[20, 30]], box=(9, 16, 31, 44)),
        prompt([[20, 30], [21, 30]], [[20, 31], [21, 31]]),
    ],
)
def test_clicks_are_kept_even_against_the_image(bench: Bench, clicked: SlicePrompt) -> None:
    answer = segment_slice(bench.embeddings, bench.decoder, 9, clicked)
    assert satisfied(answer.mask, clicked) == clicked.clicks


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (prompt([[20, 30]]), [(1, 0, False, False)]),
        (prompt(box=(9, 16, 31, 44)), [(0, 0, True, False)]),
        (prompt([[20, 30], [22, 32]], [[50, 34]]), [(1, 0, False, False), (2, 1, False, True)]),
        (prompt([[20, 30]], box=(9, 16, 31, 44)), [(0, 0, True, False), (1, 0, True, True)]),
    ],
)
def test_several_prompts_at_once_begin_with_one_of_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, asked: SlicePrompt, expected: list[tuple[int, int, bool, bool]]
) -> None:
    calls, predict = [], bench.decoder.predict

    def noted(embedding, *, frame, prompt, previous=None):
        box = prompt.box is not None
        calls.append((len(prompt.positive), len(prompt.negative), box, previous is not None))
        return predict(embedding, frame=frame, prompt=prompt, previous=previous)

    monkeypatch.setattr(bench.decoder, "predict", noted)
    answer = segment_slice(bench.embeddings, bench.decoder, 9, asked)
    assert calls == expected
    calls.clear()
    segment_slice(bench.embeddings, bench.decoder, 9, asked, previous=answer.logits)
    assert calls == [(*expected[-1][:3], True)], "what was answered before is where it goes on"


def test_the_candidate_with_more_satisfied_clicks_beats_the_better_predicted_one() -> None:
    small, large = np.full((2, 10, 10), -1.0)
    small[2:4, 2:4] = large[2:8, 2:8] = 1
    pixels = np.stack([small, large])
    assert choose(pixels, prompt([[3, 3]])) == 0
    assert choose(pixels, prompt([[3, 3], [6, 6]])) == 1
    assert choose(pixels, prompt([[3, 3]], [[6, 6]])) == 0


def test_an_empty_candidate_is_never_chosen_over_a_mask() -> None:
    pixels = np.stack([np.full((10, 10), -1.0), np.ones((10, 10))])
    assert choose(pixels, prompt([], [[1, 1]], box=(4, 4, 5, 5))) == 1


def test_a_shown_mask_is_what_a_click_corrects(bench: Bench) -> None:
    shown = ORGAN[9] | OTHER[9]
    answer = segment_slice(bench.embeddings, bench.decoder, 9, prompt([[20, 8]]), base=shown)
    assert answer.mask[ORGAN[9]].mean() > 0.9
    assert answer.mask[OTHER[9]].mean() > 0.9
    assert answer.mask[SATELLITE[9]].mean() > 0.9


def test_negative_clicks_alone_take_away_and_never_add(bench: Bench) -> None:
    shown = ORGAN[9] | OTHER[9]
    answer = correct_slice(bench.embeddings, bench.decoder, 9, prompt([], [[50, 34]]), shown)
    assert not answer.mask[34, 50]
    assert not (answer.mask & ~shown).any()
    assert dice(answer.mask & ORGAN[9], ORGAN[9]) > 0.95
    assert not (answer.mask & OTHER[9]).any()
