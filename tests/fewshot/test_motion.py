"""Between annotated slices the prior follows the anatomy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import AFFINE, QUICK, PocketDecoder, kept_and_read
from scipy.ndimage import gaussian_filter

from ssmsam.embeddings.embedder import Embedder, slice_descriptors, stacked
from ssmsam.fewshot.config import MOTION_STEPS, FewShotConfig
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.motion import motions, steps_ahead
from ssmsam.fewshot.pipeline import adapt
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.frame import draw_mask
from ssmsam.ops import dice
from ssmsam.progress import Cancelled
from ssmsam.volume.volume import Volume

COUNT = 9
ANNOTATED = (0, 4, 8)


class Moving(PocketDecoder):
    moving = True


def oblique(affine: np.ndarray = AFFINE) -> tuple[Volume, np.ndarray]:
    """A bright tube that crosses a still body, three voxels a slice."""
    _, rows, columns = np.indices((COUNT, 48, 48))
    middle = 12 + 3 * np.arange(COUNT)[:, None, None]
    tube = np.hypot(rows - 24, columns - middle) < 6
    body = np.hypot(rows - 24, columns - 24) < 22
    pixels = [gaussian_filter(slice_ * 100.0, 0.8) for slice_ in body + 1.0 * tube]
    return Volume(np.stack(pixels).astype(np.float32), affine, modality="MR"), tube


def labelled(embedder: Embedder, affine: np.ndarray = AFFINE) -> tuple[list[LabelledSlice], np.ndarray]:
    volume, tube = oblique(affine)
    opened = embedder.open(volume)
    return [LabelledSlice(opened, index, tube[index]) for index in ANNOTATED], tube


def prior(bank: SupportBank, slices: list[LabelledSlice], index: int) -> np.ndarray:
    query = slices[0].embeddings
    descriptors = slice_descriptors(stacked([query.slice(index)])["image"])
    return bank.context_of(query, [index], descriptors, config=QUICK.bank).prior[0, 0].numpy()


TURNED = [np.diag(np.array([x, y, z, 1.0]) * AFFINE.diagonal()) for x, y, z in ((1, 1, -1), (-1, 1, 1), (1, -1, -1))]


@pytest.mark.parametrize("affine", [AFFINE, *TURNED])
def test_the_prior_between_two_annotated_slices_lies_where_the_organ_is(embedder: Embedder, affine: np.ndarray) -> None:
    slices, tube = labelled(embedder, affine)
    bank = _bank(embedder, slices)
    followed, plain = (prior(one, slices, 2) > 0 for one in (bank, replace(bank, motions={})))
    truth = draw_mask(tube[2], slices[0].embeddings.frame, len(plain))[0, 0].numpy() > 0.5
    assert dice(followed, truth) > 0.75 > 0.5 > dice(plain, truth)


@pytest.mark.parametrize("affine", [AFFINE, *TURNED])
def test_nothing_is_left_to_register_after_the_steps_ahead(
    embedder: Embedder, affine: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices, _ = labelled(embedder, affine)
    expected = motions(slices)[slices[0].volume]
    embedder.derived.clear()
    steps = steps_ahead(slices[0].embeddings)
    assert len(steps) == COUNT - 1
    for step in steps:
        step()
    monkeypatch.setattr("ssmsam.fewshot.motion.both_ways", lambda *_: pytest.fail("registered again"))
    np.testing.assert_array_equal(motions(slices)[slices[0].volume].steps, expected.steps)


def test_a_decoder_that_does_not_ask_for_it_gets_the_plain_shape(embedder: Embedder) -> None:
    slices, _ = labelled(embedder)
    tasks = adaptation_tasks({"tube": slices}, embedder, PocketDecoder(), config=QUICK)
    assert not tasks["tube"][0].bank.motions


def test_varied_views_of_slices_have_no_motion(embedder: Embedder) -> None:
    slices, _ = labelled(embedder)
    views = adaptation_tasks({"tube": slices}, embedder, Moving(), config=QUICK)["tube"]
    assert [bool(view.bank.motions) for view in views] == [True] + [False] * QUICK.views.views


def test_a_task_that_was_kept_and_read_again_moves_alike(embedder: Embedder, tmp_path: Path) -> None:
    slices, _ = labelled(embedder)
    decoder = Moving()
    task = adapt({"tube": slices}, embedder, decoder, config=FewShotConfig(adaptation=QUICK, folds=0))
    again = kept_and_read(task, tmp_path, decoder)
    before, after = (prior(one.banks["tube"], slices, 3) for one in (task, again))
    np.testing.assert_array_equal(before, after)


def test_pairs_that_were_registered_are_remembered_and_long_gaps_are_crossed_in_bounded_steps(
    embedder: Embedder,
) -> None:
    volume = Volume(np.zeros((MOTION_STEPS * 3, 20, 20), dtype=np.float32), AFFINE, modality="MR")
    opened, mask = embedder.open(volume), np.zeros((20, 20), dtype=bool)
    ends = [LabelledSlice(opened, index, mask) for index in (0, volume.shape[0] - 1)]
    asked: list[int] = []
    found = motions(ends, progress=lambda phase, done, total: asked.append(total))
    (motion,) = found.values()
    assert len(motion.steps) == MOTION_STEPS == asked[0] == len(asked) - 1
    known = len(embedder.derived)
    motions(ends)
    assert len(embedder.derived) == known == MOTION_STEPS


def test_registration_of_slices_can_be_cancelled(embedder: Embedder) -> None:
    slices, _ = labelled(embedder)

    def cancel(phase: str, done: int, total: int) -> None:
        if phase == "motion" and done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        motions(slices, progress=cancel)


def _bank(embedder: Embedder, slices: list[LabelledSlice]) -> SupportBank:
    return adaptation_tasks({"tube": slices}, embedder, Moving(), config=QUICK)["tube"][0].bank
