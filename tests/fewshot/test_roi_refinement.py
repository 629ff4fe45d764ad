"""Small targets are looked at again in an enlarged window: where it is, what it shows, and what it must not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import AFFINE, ORGAN, OTHER, SLICES, PocketDecoder, ball, draw_volume, kept_and_read, labelled, quick

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import FewShotConfig, RoiConfig
from ssmsam.fewshot.pipeline import adapt, find, segment
from ssmsam.fewshot.proposals import Proposals, Target, redrawn_in, refined_in_roi, side_mm, window_in
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import Proposal
from ssmsam.models.frame import Frame, Window
from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.volume.volume import Volume
from ssmsam_research.metrics import dice

UNADAPTED = quick(adaptation=replace(quick().adaptation, steps=0))
CONFIG = RoiConfig(labelled=4)  # the planted organs are on few slices
SEGMENTATION = replace(UNADAPTED.segmentation, volume_head=False, own_slices=0, roi=CONFIG)
UNADAPTED = replace(UNADAPTED, segmentation=SEGMENTATION)
FROM_AFAR = replace(UNADAPTED, segmentation=replace(UNADAPTED.segmentation, roi=None))
ANNOTATED = (1, 3, 4, 6, 7)
LARGE = ball((4, 20, 24), (3.3, 19, 22))


class Echo(PocketDecoder):
    """Answers with the interpolated shape: the finer the cells, the finer the mask. Notes the clicks it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.clicked: list[np.ndarray] = []

    def forward(self, embedding, context, corrections=None, features=None) -> Proposal:
        if corrections is not None:
            self.clicked.append(corrections.points[0].numpy())
        return Proposal(context.prior[:, 0] + 0.01, torch.full((len(context.prior),), 4.0))


def task_of(
    embedder: Embedder, mask: np.ndarray, decoder: PocketDecoder | None = None, config: FewShotConfig = UNADAPTED
) -> AdaptedTask:
    support = {"organ": labelled(embedder, draw_volume(), mask, ANNOTATED)}
    return adapt(support, embedder, decoder or Echo(), config=config)


def bank_of(embedder: Embedder, volume: Volume, mask: np.ndarray, indices: tuple[int, ...] = ANNOTATED) -> SupportBank:
    return SupportBank.of(labelled(embedder, volume, mask, indices), Echo())


@pytest.fixture
def query(embedder: Embedder) -> VolumeEmbeddings:
    return embedder.open(draw_volume())


def test_masks_get_finer(embedder: Embedder, query: VolumeEmbeddings) -> None:
    task = task_of(embedder, OTHER)
    others = [5]
    close, afar = (segment(query, task, config=config).mask[others] == 1 for config in (UNADAPTED, FROM_AFAR))
    assert dice(close, OTHER[others]) > dice(afar, OTHER[others]) + 1


def test_it_decides_nothing_but_outlines(embedder: Embedder, query: VolumeEmbeddings) -> None:
    task = task_of(embedder, ORGAN)
    close, afar = (
        find(task, query, range(SLICES), config=config.segmentation)["organ"] for config in (UNADAPTED, FROM_AFAR)
    )
    np.testing.assert_array_equal(close.final.presence, afar.final.presence)
    shows = [(one.final.logits > 0).any(axis=(1, 2)) for one in (close, afar)]
    np.testing.assert_array_equal(*shows)
    assert close.final.roi is not None
    drawn = np.flatnonzero(close.final.roi.drawn)
    assert len(drawn)
    assert not set(drawn) & set(ANNOTATED)
    np.testing.assert_array_equal(close.final.logits[list(ANNOTATED)], afar.final.logits[list(ANNOTATED)])


def test_volumes_without_annotations_are_seen_from_afar_only(embedder: Embedder) -> None:
    task, other = task_of(embedder, ORGAN), embedder.open(draw_volume(seed=3))
    close, afar = (segment(other, task, config=config) for config in (UNADAPTED, FROM_AFAR))
    np.testing.assert_array_equal(close.mask, afar.mask)


def test_windows_of_other_volumes_are_not_shown(embedder: Embedder, decoder: PocketDecoder) -> None:
    first, second = (labelled(embedder, draw_volume(seed), ORGAN, ANNOTATED) for seed in (0, 3))
    both = adapt({"organ": [*first, *second]}, embedder, decoder, config=UNADAPTED)
    assert len(set(both.roi_banks["organ"].volumes)) == 2
    query = first[0].embeddings
    final = find(both, query, range(SLICES), config=FROM_AFAR.segmentation)["organ"].final
    without = replace(both, roi_banks=adapt({"organ": first}, embedder, decoder, config=UNADAPTED).roi_banks)
    found, expected = (
        refined_in_roi(final, Target(one, "organ", query, UNADAPTED.segmentation), {}) for one in (both, without)
    )
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)


def test_targets_that_fill_the_slice_are_large_enough(embedder: Embedder, query: VolumeEmbeddings) -> None:
    assert not task_of(embedder, LARGE).roi_banks
    assert task_of(embedder, ORGAN).roi_banks
    assert not task_of(embedder, ORGAN, config=FROM_AFAR).roi_banks


def test_few_labelled_slices_are_seen_from_afar_only(embedder: Embedder) -> None:
    volume = draw_volume()
    for indices, enough in (((2, 4, 6), False), ((0, 2, 4, 6, 8), False), ((2, 3, 4, 6), True)):
        window = window_in(bank_of(embedder, volume, ORGAN, indices), embedder.open(volume), CONFIG)
        assert (window is not None) == enough, indices


def test_a_decoder_that_never_saw_enlarged_slices_is_spared_them(embedder: Embedder) -> None:
    class Stiff(Echo):
        enlarges = False

    assert not task_of(embedder, ORGAN, Stiff()).roi_banks


@pytest.mark.parametrize("flips", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("mask", [ORGAN, OTHER])
def test_the_window_holds_the_target_however_the_volume_is_stored(
    embedder: Embedder, flips: tuple[int, int], mask: np.ndarray
) -> None:
    affine = AFFINE @ np.diag([*flips, 1.0, 1.0])
    stored = draw_volume(affine=affine)
    bank = bank_of(embedder, stored, mask)
    opened = embedder.open(stored)
    window = window_in(bank, opened, CONFIG)
    assert window is not None
    inside = np.zeros_like(mask)
    inside[(..., *window.pixels)] = True
    assert not (mask & ~inside)[list(ANNOTATED)].any()
    side = side_mm(bank.annotated_masks(), CONFIG)
    assert side is not None
    assert 72 / CONFIG.most <= side < 72 / CONFIG.least
    assert window.width * 1.5 == pytest.approx(side, abs=1.5)


def test_one_more_slice_does_not_move_the_window(embedder: Embedder) -> None:
    volume = draw_volume()
    windows = {
        window_in(bank_of(embedder, volume, OTHER, indices), embedder.open(volume), CONFIG)
        for indices in ((3, 4, 5, 6), (3, 4, 5, 6, 7), (4, 5, 6, 7), (3, 5, 6, 7))
    }
    assert len(windows) == 1


def test_windows_are_encoded_once(embedder: Embedder, query: VolumeEmbeddings) -> None:
    task = task_of(embedder, ORGAN)
    first = segment(query, task, config=UNADAPTED)
    before = embedder.encoded
    np.testing.assert_array_equal(segment(query, task, config=UNADAPTED).mask, first.mask)
    assert embedder.encoded == before


def test_a_checkpoint_from_a_file_looks_as_closely(embedder: Embedder, query: VolumeEmbeddings, tmp_path: Path) -> None:
    made, decoder = task_of(embedder, ORGAN), Echo()
    read = kept_and_read(made, tmp_path, decoder)
    found, expected = (segment(query, one, config=UNADAPTED) for one in (read, made))
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_clicks_are_heard_in_the_window(embedder: Embedder, query: VolumeEmbeddings) -> None:
    task = task_of(embedder, ORGAN)
    assert isinstance(task.decoder, Echo)
    window = window_in(task.banks["organ"], query, CONFIG)
    assert window is not None
    inside, outside = np.array([[16.0, 18.0]]), np.array([[45.0, 36.0]])
    assert window.holds(inside)
    assert not window.holds(outside)
    clicks = {"organ": {2: SlicePrompt(positive=inside), 5: SlicePrompt(negative=outside)}}
    found = find(task, query, range(SLICES), clicks=clicks, config=UNADAPTED.segmentation)["organ"].final
    assert found.roi is not None
    assert found.roi.drawn[2]
    assert not found.roi.drawn[5], "who clicks outside the window wants what is there changed"
    expected = [query.frame.points_to_input(inside), query.frame.points_to_input(outside)]
    expected.append(found.roi.frame.points_to_input(inside))
    assert len(task.decoder.clicked) == 3
    for received, point in zip(task.decoder.clicked, expected, strict=True):
        np.testing.assert_allclose(received, point, atol=1e-4)


def test_what_does_not_touch_the_mask_as_it_was_is_dropped() -> None:
    whole, part = Frame(64, 64, 64), Frame(64, 64, 64, window=Window(16, 16, 32, 32))
    before = np.full((1, 32, 32), -5.0, dtype=np.float32)
    before[0, 12:16, 12:16] = 5.0
    final = Proposals(np.array([3]), before, np.ones(1), np.eye(1))
    seen = np.full((1, 32, 32), -5.0, dtype=np.float32)
    seen[0, 8:17, 8:17] = seen[0, 28:31, 28:31] = 5.0
    found = redrawn_in(final, [0], seen, whole, part)
    pixels = found.pixels(0, whole) > 0
    assert pixels[24:32, 24:32].all()
    assert not pixels[40:, 40:].any()
    assert (found.logits[0, 12:16, 12:16] > 0).all()
    assert (found.logits[0] > 0).sum() <= 25
    nothing = redrawn_in(final, [0], np.full_like(seen, -5.0), whole, part)
    np.testing.assert_array_equal(nothing.logits, before)
