"""In which precision an encoder computes."""

from __future__ import annotations

import torch

from ssmsam.encoders.encoder import EncoderSpec


def use_bfloat16(spec: EncoderSpec, device: torch.device) -> bool:
    """Whether to compute in bfloat16 when nobody says otherwise.

    That is so where it was found to leave the encoder's masks as they are (``benchmark.py precision``), and where it is
    faster: on a processor that has instructions for it. On others it would be slower.
    """
    return spec.bfloat16 and device.type == "cpu" and has_bfloat16()


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    try:
        found = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch does not tell
        return False
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
