"""Every encoder's name gives the decoder that belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_lite import TINY, random_checkpoint

from ssmsam.models.prompt_sam import SamPromptDecoder
from ssmsam.models.registry import ENCODERS, load_decoder, load_encoder
from ssmsam.models.sam_encoder import build_sam
from ssmsam.models.tiny_vit import build_lite_medsam
from ssmsam.models.weights import MissingWeights, entry, find_weights, sha256_of
from ssmsam_research.training.lite_training import LiteDecoder
from ssmsam_research.training.loop import write_weights


def small_is_here() -> bool:
    try:
        find_weights("small")
    except (MissingWeights, ValueError):
        return False
    return True


@pytest.mark.skipif(not small_is_here(), reason="the small model's weights are not in this checkout")
def test_small() -> None:
    from ssmsam.models.prompt_small import SmallPromptDecoder

    decoder = load_decoder("small")
    assert isinstance(decoder, SmallPromptDecoder)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="small"):
        load_decoder("nonsense")


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("small", "medsam_lite")])
def test_missing_weights_say_how_to_get_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSMSAM_WEIGHTS", raising=False)
    monkeypatch.setattr("ssmsam.models.weights.cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(MissingWeights):
        load_decoder(name, folder=tmp_path)


def test_a_sam_checkpoint_gives_encoder_and_decoder(tmp_path: Path) -> None:
    """A randomly initialised checkpoint of the official layout."""
    torch.manual_seed(0)
    sam = build_sam("vit_b")
    path = tmp_path / entry("sam_vit_b").file
    torch.save(sam.state_dict(), path)
    encoder = load_encoder("sam_vit_b", folder=tmp_path, allow_unverified=True)
    decoder = load_decoder("sam_vit_b", folder=tmp_path, allow_unverified=True)
    assert isinstance(decoder, SamPromptDecoder)
    assert decoder.logits_size == 256
    assert encoder.sam.mask_decoder is decoder.mask_decoder
    for name, value in sam.mask_decoder.state_dict().items():
        assert torch.equal(value, decoder.mask_decoder.state_dict()[name])


def lite_checkpoint(folder: Path, *, made_for: str | None) -> None:
    """A tiny random LiteMedSAM in ``folder``, and a decoder of ours that says whose it is."""
    torch.save(random_checkpoint(), folder / entry("medsam_lite").file)
    digest = sha256_of(folder / entry("medsam_lite").file) if made_for is None else made_for
    decoder = LiteDecoder(build_lite_medsam(TINY))
    state = {name: torch.zeros_like(tensor) for name, tensor in decoder.state_dict().items()}
    write_weights(folder / entry("medsam_lite_decoder").file, state, {"encoder_sha256": digest})


@pytest.mark.parametrize("made_for", [None, "others"])
def test_our_decoder_is_taken_for_its_own_encoder_only(
    made_for: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssmsam.models.sam_encoder.build_lite_medsam", lambda: build_lite_medsam(TINY))
    lite_checkpoint(tmp_path, made_for=made_for)
    decoder = load_decoder("medsam_lite", folder=tmp_path, allow_unverified=True)
    assert isinstance(decoder, SamPromptDecoder)
    ours = not any(tensor.any() for tensor in decoder.mask_decoder.state_dict().values())
    assert ours == (made_for is None)
    assert decoder.propagates_box
    published = load_decoder("medsam_lite", folder=tmp_path, allow_unverified=True, published=True)
    assert isinstance(published, SamPromptDecoder) and published.propagates_box
    assert any(tensor.any() for tensor in published.mask_decoder.state_dict().values())
