"""Few-shot episodes on embedded slices, and the training on them, at toy size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ssmsam.embeddings.embedder import Embedder
from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.fewshot_fused import STAGES, FusedTargetNetwork
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.sam_encoder import Projection, Reduction
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import Case
from ssmsam_research.training.fewshot_episodes import (
    EmbeddedVolume,
    FewShotEpisodeConfig,
    FewShotEpisodes,
    embed_volume,
    estranged_view,
    load_volumes,
)
from ssmsam_research.training.fewshot_training import (
    FewShotTrainer,
    FewShotTrainingConfig,
    answer,
    begun_with_small,
    train_fewshot,
)

SIDE = 64
CONFIG = FewShotTrainingConfig(steps=2, warm_up_steps=1, episodes=FewShotEpisodeConfig(region_share=0.0))


def volume(name: str, slices: int, dataset: str = "toy", seed: int = 0) -> EmbeddedVolume:
    """Discs that the embedding shows plainly, on all slices but the outermost of a stack."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((SIDE, SIDE))
    label = np.zeros((slices, SIDE, SIDE), dtype=np.uint8)
    for index in range(slices):
        centre = rng.integers(24, 40, 2)
        label[index] = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 120
    if slices > 3:
        label[[0, -1]] = 0
    shown = torch.from_numpy(label)[:, None].float()

    def maps(channels: int, side: int) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(shown, side).repeat(1, channels, 1, 1).half()

    embedding: Embedding = {
        "image": maps(STAGES[0], 16),
        "levels": [maps(c, s) for c, s in zip((*STAGES[1:], 16, 48, 128), (16, 8, 8, 32, 16, 8), strict=True)],
    }
    return EmbeddedVolume(
        dataset, name, embedding, label, np.arange(slices) * 4.0, np.full((slices, 2), 32.0), (SIDE, SIDE), 1.0,
        np.zeros((1, slices, SIDE // 2, SIDE // 2), dtype=np.uint16), {1: label.any(axis=(1, 2))},
    )  # fmt: skip


def volumes() -> list[EmbeddedVolume]:
    stacks = [volume(f"stack {n}", 9, seed=n) for n in range(3)]
    return [*stacks, *(volume(f"image {n}", 1, "flat", seed=9 + n) for n in range(3))]


def test_a_query_is_never_among_what_is_labelled() -> None:
    episodes, rng = FewShotEpisodes(volumes(), FewShotEpisodeConfig()), np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        drawn = episodes.draw(rng)
        places = list(zip(drawn.volumes, drawn.positions, strict=True))
        labelled, asked = set(places[: drawn.supports]), set(places[drawn.supports :])
        assert labelled and asked and not labelled & asked
        names = {name for name, _ in asked}
        assert drawn.query in names
        # several queries are of one volume, or of single images
        assert names == {drawn.query} or not names & {name for name, _ in labelled}
        assert drawn.masks[: drawn.supports].any(), "nothing shows the target"
        kinds.add((drawn.dataset, drawn.query in drawn.volumes[: drawn.supports]))
    assert kinds >= {("toy", True), ("toy", False), ("flat", False)}


def test_the_truth_of_queries_reaches_no_answer() -> None:
    torch.manual_seed(0)
    network = FusedTargetNetwork().eval().requires_grad_(False)
    drawn = FewShotEpisodes(volumes(), FewShotEpisodeConfig()).draw(np.random.default_rng(1))
    masks = drawn.masks.clone()
    masks[drawn.supports :] = torch.rand_like(masks[drawn.supports :])
    first, second = (answer(network, one) for one in (drawn, replace(drawn, masks=masks)))
    torch.testing.assert_close(first.proposal.logits, second.proposal.logits)
    torch.testing.assert_close(first.fitted, second.fitted)


def test_it_learns_and_the_online_optimiser_with_it() -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, steps=100, learning_rate=1e-3, new_learning_rate=3e-3, corrected_share=0.0)
    trainer = FewShotTrainer(FusedTargetNetwork(), config)
    before = {name: tensor.clone() for name, tensor in trainer.model.optimiser.state_dict().items()}
    episodes = FewShotEpisodes(volumes(), config.episodes)
    losses = []
    for _ in range(24):
        found = trainer.train_step(episodes)
        losses.append(next(value for name, value in found.items() if name.endswith("proposal")))
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    after = trainer.model.optimiser.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in ("log_penalty", "balance", "hidden.weight"))


def test_a_run_writes_weights_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "decoder.safetensors"
    first = train_fewshot(
        volumes(), FusedTargetNetwork(), out=out, config=replace(CONFIG, steps=1), metadata={"a": "b"}
    )
    with safe_open(str(out), framework="pt") as file:
        assert file.metadata() == {"a": "b"}
        assert set(file.keys()) == set(FusedTargetNetwork().state_dict())
    again = train_fewshot(volumes(), FusedTargetNetwork(), out=out, config=CONFIG, resume=out.with_suffix(".ckpt"))
    assert (first.step, again.step) == (1, 2)


def test_one_part_is_trained_alone_by_the_recipe_that_stands_beside_the_weights(tmp_path: Path) -> None:
    config = replace(CONFIG, only="shape", estranged_share=0.5, episodes=FewShotEpisodeConfig(cross_share=0.0))
    network = FusedTargetNetwork()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    out = tmp_path / "decoder.safetensors"
    trained = train_fewshot(volumes()[:3], network, out=out, config=config).model.state_dict()
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("shape.") for name in changed)
    assert FewShotTrainingConfig.from_file(out.with_suffix(".config.json")) == config


def test_what_an_estranged_decoder_sees_is_mixed_alike_in_all_slices() -> None:
    seen = volume("stack", 5).slices(np.arange(5))
    torch.testing.assert_close(estranged_view(seen, 0.0, 1)["image"], seen["image"])
    mixed = estranged_view(seen, 1.0, 1)
    assert not torch.allclose(mixed["image"], seen["image"])
    torch.testing.assert_close(mixed["image"].norm(dim=1), seen["image"].norm(dim=1))
    torch.testing.assert_close(estranged_view(seen, 1.0, 1)["image"][:2], mixed["image"][:2])
    torch.testing.assert_close(mixed["levels"][-1], seen["levels"][-1])


@pytest.mark.parametrize("prior", [True, False])
def test_priors_can_be_left_out(prior: bool) -> None:
    network = FusedTargetNetwork().eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    episodes = FewShotEpisodes(volumes()[:3], replace(CONFIG.episodes, cross_share=0.0))
    found = answer(network, episodes.draw(rng), prior=prior, fitted=False)
    assert bool(found.context.trust.any()) == prior
    assert not found.context.weights.any()


class Stages(Encoder):
    """As many maps as the pretrained encoder, all of them means of squares."""

    spec = EncoderSpec(
        name="stages", input_size=256, stride=4, channels=STAGES[0],
        level_strides=(4, 8, 8, 2, 4, 8), level_channels=(*STAGES[1:], 16, 48, 128), level_names=tuple("abcdef"),
    )  # fmt: skip
    weights_sha256 = "stages"
    seen = 0

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.seen += len(slices)

        def maps(channels: int, stride: int) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(slices[:, :1], stride).repeat(1, channels, 1, 1)

        spec = self.spec
        levels = [maps(c, s) for c, s in zip(spec.level_channels, spec.level_strides, strict=True)]
        return {"image": maps(spec.channels, spec.stride), "levels": levels}


def test_a_volume_is_embedded_once_with_slices_beyond_its_labels(tmp_path: Path) -> None:
    z, y, x = np.indices((12, 40, 48))
    ball = ((z - 6) ** 2 * 4 + (y - 20) ** 2 + (x - 24) ** 2 < 81).astype(np.uint8)
    for kind, array in (("image", ball * 100.0), ("label", ball)):
        write_volume(Volume(array, np.eye(4)), tmp_path / f"{kind}.nii.gz")
    case = Case("one", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    encoder, folder = Stages(), tmp_path / "cache"
    for _ in range(2):
        embed_volume(case, "set", embedder=Embedder(encoder=encoder), folder=folder, limit=4)
    (found,) = load_volumes(folder)
    assert (found.dataset, found.name, list(found.shows)) == ("set", "one", [1])
    assert encoder.seen == len(found.label) and found.shows[1].sum() >= 4 and (~found.shows[1]).any()
    assert len(set(np.diff(found.position)) - {0}) >= 1 and (np.diff(found.position) > 0).all()
    some = found.slices(np.array([0, 2]))
    assert some["image"].shape == (2, STAGES[0], 64, 64) and len(some["levels"]) == 6
    network = begun_with_small([found], TargetNetwork(), tiny_reduction())
    standard = network.features(found.slices(np.arange(len(found.label))))
    assert float(standard.mean().abs()) < 1.0
    with pytest.raises(FileNotFoundError, match="embed-volumes"):
        load_volumes(folder, keep=lambda dataset: dataset != "set")


def tiny_reduction() -> Reduction:
    return Reduction({"image": Projection(torch.zeros(256), torch.eye(256, STAGES[0]))}, "d" * 64)
