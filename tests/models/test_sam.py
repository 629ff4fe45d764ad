from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssmsam.models import sam_encoder as attention
from ssmsam.models.registry import ENCODERS, load_encoder
from ssmsam.models.sam_encoder import (
    PIXEL_MEAN,
    PIXEL_STD,
    HeadwiseAttention,
    SamEncoder,
    build_sam,
    load_sam,
    use_headwise_attention,
)
from ssmsam.models.weights import CorruptWeights, MissingWeights


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Also what stock SAM starts with zeros: position tables and biases."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 0.05)
    for name, parameter in network.named_parameters():
        if "pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def a_small_sam(*, size: int = 256, depth: int = 2, tasks: int = 4):
    """The stock classes at a small size: a windowed block whose window does not divide the grid, a global one."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    vit = ImageEncoderViT(
        img_size=size, patch_size=16, embed_dim=8 * tasks, depth=depth, num_heads=tasks, out_chans=16,
        use_rel_pos=True, window_size=7, global_attn_indexes=(depth - 1,),
    )  # fmt: skip
    grid = (size // 16, size // 16)
    prompts = PromptEncoder(16, grid, (size, size), 4)
    masks = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(1, 16, 2, 32))
    return randomise(Sam(vit, prompts, masks, list(PIXEL_MEAN), list(PIXEL_STD)))


@pytest.fixture(scope="session")
def vit_b(tmp_path_factory) -> Path:
    """A randomly initialised checkpoint in the official layout of ViT-B."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    torch.save(sam_model_registry["vit_b"]().state_dict(), folder / "sam_vit_b_01ec64.pth")
    (folder / "medsam_vit_b.pth").symlink_to(folder / "sam_vit_b_01ec64.pth")
    yield folder
    (folder / "sam_vit_b_01ec64.pth").unlink()


@pytest.mark.parametrize("cells", [2**22, 2**16, 1], ids=["all heads", "some heads", "one head"])
def test_the_encoder_gives_what_the_stock_one_gives(cells, monkeypatch):
    monkeypatch.setattr(attention, "BIAS_CELLS", cells)
    sam = a_small_sam()
    slices = torch.rand(2, 3, 256, 256)
    with torch.inference_mode():
        expected = sam.image_encoder(sam.preprocess(slices * 255))
        encoder = SamEncoder(use_headwise_attention(sam), name="sam_vit_b", weights_sha256="x")
        found = encoder.encode(slices)
    assert found["image"].shape == (2, 16, 16, 16)
    assert found["levels"] == []
    torch.testing.assert_close(found["image"], expected, rtol=1e-4, atol=1e-4)


def test_global_attention_at_full_size_runs_checkpoint_by_head():
    """64 x 64 tokens, as SAM has: the bias of one head alone is more than is made at once."""
    from segment_anything.modeling.image_encoder import Attention

    stock = randomise(Attention(16, 2, True, True, True, (64, 64)))
    tokens = torch.randn(1, 64, 64, 16)
    with torch.inference_mode():
        expected = stock(tokens)
        torch.testing.assert_close(HeadwiseAttention(stock)(tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_position_bias_matters():
    sam = use_headwise_attention(a_small_sam())
    encoder = SamEncoder(sam, name="sam_vit_b", weights_sha256="x")
    slices = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        before = encoder.encode(slices)["image"]
        for table in ("rel_pos_h", "rel_pos_w"):
            kept = getattr(sam.image_encoder.blocks[1].attn, table).clone()
            getattr(sam.image_encoder.blocks[1].attn, table).zero_()
            assert (encoder.encode(slices)["image"] - before).abs().max() > 1e-2
            getattr(sam.image_encoder.blocks[1].attn, table).copy_(kept)
        torch.testing.assert_close(encoder.encode(slices)["image"], before)


def test_attention_can_be_trained():
    from segment_anything.modeling.image_encoder import Attention

    stock = randomise(Attention(16, 2, True, True, True, (8, 8)))
    tokens = torch.randn(1, 8, 8, 16)
    stock(tokens).square().sum().backward()
    expected = stock.rel_pos_h.grad.clone()
    stock.zero_grad()
    HeadwiseAttention(stock)(tokens).square().sum().backward()
    torch.testing.assert_close(stock.rel_pos_h.grad, expected, rtol=1e-3, atol=1e-3)


def test_attention_for_another_grid_is_refused():
    from segment_anything.modeling.image_encoder import Attention

    with pytest.raises(ValueError, match="8 tokens along an axis, got 9"):
        HeadwiseAttention(Attention(16, 2, True, True, True, (8, 8)))(torch.randn(1, 9, 9, 16))


def test_the_library_keeps_its_own_attention():
    from segment_anything.modeling.image_encoder import Attention, Block

    use_headwise_attention(a_small_sam())
    assert type(Block(16, 2).attn) is Attention


def test_medsam_reads_intensities_as_they_are():
    sam = use_headwise_attention(a_small_sam())
    slices = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        found = SamEncoder(sam, name="medsam_vit_b", weights_sha256="x").encode(slices)["image"]
        torch.testing.assert_close(found, sam.image_encoder(slices))


def test_inputs_of_another_size_are_refused():
    encoder = SamEncoder(use_headwise_attention(a_small_sam()), name="sam_vit_b", weights_sha256="x")
    with pytest.raises(ValueError, match=r"\(B, 3, 256, 256\), got \(1, 3, 128, 256\)"):
        encoder.encode(torch.rand(1, 3, 128, 256))


def test_names():
    assert ENCODERS == ("small", "medsam_lite", "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b")
    with pytest.raises(ValueError, match="valid names: small, medsam_lite, sam_vit_b"):
        load_encoder("resnet")
    with pytest.raises(ValueError, match="vit_b, vit_l, vit_h"):
        build_sam("vit_g")


def test_a_missing_checkpoint_is_missing(tmp_path):
    with pytest.raises(MissingWeights, match=r"sam_vit_h_4b8939\.pth"):
        load_encoder("sam_vit_h", folder=tmp_path)


@pytest.mark.parametrize("name", ["sam_vit_b", "medsam_vit_b"])
def test_a_checkpoint_of_the_official_layout(vit_b, name):
    with pytest.raises(CorruptWeights, match="expected"):
        load_encoder(name, folder=vit_b)
    threads = torch.get_num_threads()
    encoder = load_encoder(name, folder=vit_b, allow_unverified=True)
    assert torch.get_num_threads() == threads
    spec = encoder.spec
    assert (spec.name, spec.input_size, spec.stride, spec.channels, spec.context) == (name, 1024, 16, 256, 0)
    assert len(encoder.weights_sha256) == 64
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(tensor.device.type == "cpu" for tensor in [*encoder.parameters(), *encoder.buffers()])
    state = torch.load(next(vit_b.glob("sam*")), weights_only=True)
    assert all(torch.equal(encoder.sam.state_dict()[key], value) for key, value in state.items())
    assert len(encoder.sam.state_dict()) == len(state)


def test_a_checkpoint_is_read_once(vit_b):
    encoder = load_encoder("sam_vit_b", folder=vit_b, allow_unverified=True)
    assert load_sam("sam_vit_b", vit_b / "sam_vit_b_01ec64.pth") is encoder.sam


@pytest.mark.parametrize("damage", ["missing key", "extra key", "shape", "wrapped", "not a checkpoint", "half a file"])
def test_another_layout_is_refused_in_words(tmp_path, damage):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in build_sam("vit_b").state_dict().items()}
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}  # which takes next to no room
    word = "mask_decoder.iou_token.weight"
    if damage == "missing key":
        del state[word]
    elif damage == "extra key":
        word = "mask_decoder.hq_token"
        state[word] = torch.zeros(1)
    elif damage == "shape":
        state[word] = torch.zeros(2, 256)
    elif damage == "wrapped":
        state, word = {"model": state, "epoch": 3}, "training checkpoint"
    else:
        word = "official layout"
    if damage == "not a checkpoint":
        path.write_text("<html>404</html>")
    elif damage == "half a file":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:10_000])
    else:
        torch.save(state, path)
    with pytest.raises(CorruptWeights) as error:
        load_encoder("sam_vit_b", folder=tmp_path, allow_unverified=True)
    assert word in str(error.value)
    assert str(path) in str(error.value)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"image_encoder.pos_embed": Evil()}, tmp_path / "sam_vit_b_01ec64.pth")
    with pytest.raises(CorruptWeights):
        load_encoder("sam_vit_b", folder=tmp_path, allow_unverified=True)
    assert not (tmp_path / "ran").exists()


def test_importing_the_encoders_is_cheap():
    modules = "ssmsam.models.registry, ssmsam.embeddings.embedder, ssmsam.models.sam_encoder"
    code = f"import {modules}, sys; print([*sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" in found
    assert "torchvision" not in found
    assert "segment_anything" not in found
