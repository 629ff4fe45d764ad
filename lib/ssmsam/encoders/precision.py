"""In which precision an encoder computes."""

from __future__ import annotations

import torch

from ssmsam.encoders.encoder import EncoderSpec


def use_bfloat16(spec: EncoderSpec, device: torch.device) -> bool:
    """Whether to compute in bfloat16 when nobody says otherwise.

    That is so where it was found to leave the encoder's masks as they are, and where it is faster: on a processor that
    has instructions for it. On others it would be slower.
    """
    return spec.bfloat16 and device.type == "cpu" and _has_instructions()


def _has_instructions() -> bool:
    try:
        found = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch does not tell
        return False
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
