"""A SAM that is small enough for tests, put together from the published parts."""

from __future__ import annotations

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from ssmsam.models.sam_encoder import PIXEL_MEAN, PIXEL_STD

SIZE = 256


def tiny_sam(size: int = SIZE) -> Sam:
    """The published decoder for inputs of this side, behind a tiny image encoder; random weights, always the same."""
    torch.manual_seed(0)
    grid = size // 16
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=2, embed_dim=64, img_size=size, num_heads=2, patch_size=16, out_chans=256, use_rel_pos=True,
            global_attn_indexes=(1,), window_size=4, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    ).eval()  # fmt: skip
