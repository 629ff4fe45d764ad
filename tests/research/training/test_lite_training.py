"""Embedded slices on disk, and the training of LiteMedSAM's decoder on them, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published_lite import TINY, random_checkpoint
from safetensors import safe_open

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.prompt_sam import SamPromptDecoder
from ssmsam.models.tiny_vit import build_lite_medsam, take_published
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import Case
from ssmsam_research.training.embedded_slices import EmbeddedSlices, embed_case, load_slices, spread
from ssmsam_research.training.lite_training import LiteDecoder, LiteTrainer, LiteTrainingConfig, Targets, train_lite

SIDE, CELLS = 64, 16


class CountingEncoder(Encoder):
    """Means of squares; counts the slices."""

    spec = EncoderSpec(name="counting", input_size=256, stride=16, channels=3)
    weights_sha256 = "counting"
    seen = 0

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.seen += len(slices)
        return {"image": torch.nn.functional.avg_pool2d(slices, 16), "levels": []}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    z, y, x = np.indices((12, 40, 48))
    ball = ((z - 6) ** 2 * 4 + (y - 20) ** 2 + (x - 24) ** 2 < 81).astype(np.uint8)
    for kind, array in (("image", ball * 100.0), ("label", ball)):
        write_volume(Volume(array, np.eye(4)), tmp_path / f"{kind}.nii.gz")
    return Case("one", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")


@pytest.fixture
def sam() -> torch.nn.Module:
    found = build_lite_medsam(TINY)
    take_published(found, random_checkpoint())
    return found.eval()


def toy(count: int = 4) -> EmbeddedSlices:
    """Discs that the embedding shows plainly."""
    rng = np.random.default_rng(0)
    y, x = np.indices((SIDE, SIDE))
    label = np.stack([(y - rng.integers(20, 44)) ** 2 + (x - rng.integers(20, 44)) ** 2 < 150 for _ in range(count)])
    cells = label.reshape(count, CELLS, 4, CELLS, 4).mean((2, 4))
    image = np.repeat(cells[:, None], 256, axis=1).astype(np.float16)
    return EmbeddedSlices("toy", "one", image, label.astype(np.uint8))


def test_a_slice_is_embedded_once(case: Case, tmp_path: Path) -> None:
    encoder, folder = CountingEncoder(), tmp_path / "cache"
    first = embed_case(case, "set", encoder=encoder, folder=folder, limit=3)
    again = embed_case(case, "set", encoder=encoder, folder=folder, limit=3)
    assert first is not None and again is not None and encoder.seen == 3
    assert first.image.shape == (3, 3, 16, 16) and first.label.shape == (3, 256, 256)
    covered = torch.from_numpy(first.label == 1).float()[:, None]
    shown = torch.nn.functional.avg_pool2d(covered, 16)[:, 0].numpy()
    np.testing.assert_allclose(first.image[:, 0], shown, atol=0.3)
    assert [(one.dataset, one.name) for one in load_slices(folder)] == [("set", "one")]
    with pytest.raises(FileNotFoundError, match="ssmsam train embed"):
        load_slices(folder, keep=lambda dataset: dataset != "set")


def test_a_case_that_was_interrupted_is_made_again(case: Case, tmp_path: Path) -> None:
    embed_case(case, "set", encoder=CountingEncoder(), folder=tmp_path, limit=2)
    (tmp_path / "set-one.label.npy").unlink()
    encoder = CountingEncoder()
    embed_case(case, "set", encoder=encoder, folder=tmp_path, limit=2)
    assert encoder.seen == 2


@pytest.mark.parametrize(("count", "limit"), [(3, 5), (10, 4), (10, 1)])
def test_slices_are_spread(count: int, limit: int) -> None:
    found = spread(np.arange(count) + 7, limit)
    assert len(set(found.tolist())) == min(count, limit)
    assert found.min() >= 7 and found.max() < 7 + count


def test_it_is_the_decoder_that_answers_in_the_server(sam: torch.nn.Module) -> None:
    """What is trained on batches gives what the published classes give for each image by itself."""
    model, one = LiteDecoder(sam).eval(), SamPromptDecoder.from_sam(sam)
    image = torch.randn(2, 256, CELLS, CELLS)
    points = torch.tensor([[[20.0, 30.0]], [[40.0, 11.0]]]), torch.ones(2, 1)
    with torch.inference_mode():
        logits, quality = model(image, points=points, boxes=None, masks=None)
        for n in range(2):
            sparse, dense = one.prompt_encoder(
                points=(points[0][n : n + 1], points[1][n : n + 1]), boxes=None, masks=None
            )
            expected, judged = one.mask_decoder(
                image_embeddings=image[n : n + 1], image_pe=one.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True,
            )  # fmt: skip
            torch.testing.assert_close(logits[n : n + 1, 1:], expected, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(quality[n : n + 1, 1:], judged, rtol=1e-3, atol=1e-4)


def test_it_learns_what_a_click_means(sam: torch.nn.Module) -> None:
    config = LiteTrainingConfig(
        batch=2, learning_rate=1e-3, warm_up_steps=1, box_share=0.0, neighbour_share=0.0, part_share=0.0, rounds=(2, 2)
    )
    trainer, targets = LiteTrainer(sam, config), Targets([toy()], part_share=0.0)
    losses = [trainer.train_step(targets) for _ in range(14)]
    first, last = (np.mean([one["click 2"] for one in part]) for part in (losses[:4], losses[-4:]))
    assert last < 0.8 * first


def test_a_run_writes_weights_and_goes_on(sam: torch.nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "decoder.safetensors"
    config = LiteTrainingConfig(steps=1, batch=2, rounds=(2, 2))
    first = train_lite([toy()], sam, out=out, config=config, encoder_sha256="abc")
    with safe_open(str(out), framework="pt") as file:
        assert file.metadata() == {"encoder_sha256": "abc"}
        assert set(file.keys()) == set(LiteDecoder(sam).state_dict())
    second = train_lite([toy()], sam, out=out, config=config, encoder_sha256="abc", resume=out.with_suffix(".ckpt"))
    assert (first.step, second.step) == (1, 2)


BEGINNINGS = [(0.0, 0.0, "click"), (1.0, 0.0, "box"), (0.0, 1.0, "neighbour")]


@pytest.mark.parametrize(("boxes", "neighbours", "kind"), BEGINNINGS)
def test_every_way_to_begin_is_practised(sam: torch.nn.Module, boxes: float, neighbours: float, kind: str) -> None:
    config = LiteTrainingConfig(batch=2, box_share=boxes, neighbour_share=neighbours, rounds=(2, 2))
    losses = LiteTrainer(sam, config).train_step(Targets([toy()], part_share=0.0))
    assert set(losses) == {f"{kind} 1", f"{kind} 2"} and np.isfinite(list(losses.values())).all()


def test_a_set_of_many_labels_counts_for_more_and_not_for_all() -> None:
    one = toy()
    many = EmbeddedSlices("many", "one", one.image, one.label * np.arange(1, 5, dtype=np.uint8)[:, None, None])
    targets = Targets([one, many], part_share=0.0)
    np.testing.assert_allclose(targets.chances, [2 / 3, 1 / 3])


def test_slices_without_labels_teach_nothing() -> None:
    empty = toy()
    with pytest.raises(ValueError, match="no slice holds a label"):
        Targets([EmbeddedSlices("toy", "one", empty.image, empty.label * 0)], part_share=0.0)
