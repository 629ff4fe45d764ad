"""The small encoder keeps what its spec promises."""

import pytest
import torch
from safetensors.torch import save_file

from ssmsam.models.small_encoder import SPEC, SmallEncoder, part_of


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SmallEncoder().eval().requires_grad_(False)


def test_embedding_has_the_declared_shapes(encoder):
    found = encoder.encode(torch.rand(2, 3, 256, 256))
    assert found["image"].shape == (2, SPEC.channels, 32, 32)
    shapes = [tuple(level.shape[1:]) for level in found["levels"]]
    assert shapes == [(c, 256 // s, 256 // s) for c, s in zip(SPEC.level_channels, SPEC.level_strides, strict=True)]


def test_slices_of_a_batch_do_not_mix(encoder):
    slices = torch.rand(2, 3, 256, 256)
    together, alone = encoder.encode(slices), encoder.encode(slices[1:])
    torch.testing.assert_close(together["image"][1:], alone["image"], atol=1e-4, rtol=1e-3)


def test_other_sizes_are_refused(encoder):
    with pytest.raises(ValueError, match="256"):
        encoder.encode(torch.rand(1, 3, 128, 128))


def test_it_reads_back_what_was_saved(encoder, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({f"encoder.{k}": v.contiguous() for k, v in encoder.state_dict().items()}, str(path))
    loaded = SmallEncoder.from_file(path)
    slices = torch.rand(1, 3, 256, 256)
    assert torch.equal(loaded.encode(slices)["image"], encoder.encode(slices)["image"])
    assert len(loaded.weights_sha256) == 64
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_foreign_file_is_named_as_such():
    with pytest.raises(ValueError, match="small model"):
        part_of({"image_encoder.pos_embed": torch.zeros(1)}, "encoder")
