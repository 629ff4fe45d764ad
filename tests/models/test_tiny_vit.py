"""Our TinyViT against the published layout spelled out, and against a recorded output of the published weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_lite import TINY, published_forward, random_encoder

from ssmsam.models import tiny_vit
from ssmsam.models.registry import load_encoder
from ssmsam.models.tiny_vit import TinyVit, for_inference
from ssmsam.models.weights import MissingWeights

RECORDED = Path(__file__).with_name("lite_medsam_output.json")


def loaded(state: dict[str, torch.Tensor]) -> TinyVit:
    network = TinyVit(TINY).eval()
    network.load_state_dict(for_inference(state), strict=True)
    network.prepare()
    return network


def test_it_gives_what_the_published_layout_gives() -> None:
    state, slices = random_encoder(), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = loaded(state)(slices), published_forward(state, slices)
    assert found.shape == (2, 256, 16, 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2**13, 2**30])
def test_strips_and_pieces_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state, slices = random_encoder(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(tiny_vit, "STRIP_BYTES", size)
    monkeypatch.setattr(tiny_vit, "PIECE_BYTES", size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(state)(slices), published_forward(state, slices), rtol=1e-4, atol=1e-4)


def test_stages_are_handed_out() -> None:
    kept = {}
    with torch.inference_mode():
        loaded(random_encoder())(torch.rand(1, 3, 64, 64), keep=kept.__setitem__)
    assert {number: tuple(features.shape[1:]) for number, features in kept.items()} == {
        0: (8, 64, 64), 1: (16, 32, 32), 2: (32, 16, 16), 3: (32, 16, 16),
    }  # fmt: skip


@pytest.mark.parametrize("change", ["missing", "more", "shape", "half a batch norm"])
def test_loading_is_strict(change: str) -> None:
    state = random_encoder()
    if change == "missing":
        del state["layers.1.blocks.0.attn.qkv.weight"]
    elif change == "more":
        state["layers.1.blocks.0.attn.extra"] = torch.zeros(1)
    elif change == "shape":
        state["neck.0.weight"] = state["neck.0.weight"][:-1]
    else:
        del state["layers.0.blocks.0.conv1.bn.running_var"]
    with pytest.raises(RuntimeError):
        loaded(state)


def test_the_published_weights_give_the_recorded_output() -> None:
    """Recorded once with the publishers' own code, unfolded and in single precision."""
    try:
        network = load_encoder("medsam_lite").sam.image_encoder  # type: ignore[attr-defined]
    except MissingWeights as error:
        pytest.skip(str(error))
    recorded = json.loads(RECORDED.read_text())
    with torch.inference_mode():
        found = network(rings())[0, :: recorded["channel_step"], :: recorded["cell_step"], :: recorded["cell_step"]]
    torch.testing.assert_close(found, torch.tensor(recorded["output"]), rtol=1e-3, atol=1e-4)


def rings() -> torch.Tensor:
    """(1, 3, 256, 256) in [0, 1]: an image that needs no file."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    apart = torch.hypot(y - 100, x - 140)
    return (0.5 + 0.5 * torch.cos(apart / 9) * torch.exp(-apart / 120)).expand(1, 3, -1, -1)
