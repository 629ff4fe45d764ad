"""Every encoder's name gives the decoder that belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmsam.encoders.registry import ENCODERS, load_encoder
from ssmsam.encoders.sam import build_sam
from ssmsam.encoders.weights import MissingWeights, find_weights
from ssmsam.prompting.registry import load_decoder
from ssmsam.prompting.sam_decoder import SamPromptDecoder


def small_is_here() -> bool:
    try:
        find_weights("small")
    except (MissingWeights, ValueError):
        return False
    return True


@pytest.mark.skipif(not small_is_here(), reason="the small model's weights are not in this checkout")
def test_small() -> None:
    from ssmsam.prompting.small_decoder import SmallPromptDecoder

    decoder = load_decoder("small")
    assert isinstance(decoder, SmallPromptDecoder)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="small"):
        load_decoder("nonsense")


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("small", "medsam_lite")])
def test_missing_weights_say_how_to_get_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSMSAM_WEIGHTS", raising=False)
    monkeypatch.setattr("ssmsam.encoders.weights.cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(MissingWeights):
        load_decoder(name, folder=tmp_path)


def test_a_sam_checkpoint_gives_encoder_and_decoder(tmp_path: Path) -> None:
    """A randomly initialised checkpoint of the official layout."""
    from ssmsam.encoders.manifest import entry

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
