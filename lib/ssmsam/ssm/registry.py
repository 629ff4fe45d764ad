"""The decoder of SSM-SAM that belongs to each encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ssmsam.encoders.weights import find_made_for, find_weights, weights_digest
from ssmsam.fewshot.decoder import same_start
from ssmsam.fewshot.registry import load_target_decoder
from ssmsam.ssm.network import SelfSamplingDecoder, SsmConfig

logger = logging.getLogger(__name__)

STARTS = {"small": "small_ssm"}
"""The meta-learned starts in the manifest, by encoder."""


def load_ssm_decoder(
    encoder_name: str,
    *,
    folder: Path | str | None = None,
    download: bool = False,
    device: str = "cpu",
    allow_unverified: bool = False,
    config: SsmConfig | None = None,
) -> SelfSamplingDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, frozen, in evaluation mode.

    It begins with the packaged start that was meta-learned for the very weights of the encoder; for others, which is
    logged, with the target decoder of :func:`ssmsam.fewshot.registry.load_target_decoder`, whose arguments and errors
    these are.
    """
    wanted: dict[str, Any] = {"folder": folder, "download": download, "allow_unverified": allow_unverified}
    inner = load_target_decoder(encoder_name, device=device, **wanted)
    weights = weights_digest(find_weights(encoder_name, **wanted))
    with same_start():
        decoder = SelfSamplingDecoder(inner, width=inner.width, config=config)
    start = _start(encoder_name, weights, **wanted)
    if start is not None:
        begin_with(decoder, load_file(str(start)))
    return decoder.to(device).eval().requires_grad_(False)


def begin_with(decoder: SelfSamplingDecoder, start: Mapping[str, torch.Tensor]) -> None:
    """Give a decoder the weights of a start. What it reads of further levels begins without effect where the start
    knows nothing of them. Raises RuntimeError when they do not fit."""
    own = {name: tensor for name, tensor in decoder.state_dict().items() if name.startswith("levels.")}
    decoder.load_state_dict({**own, **{name: tensor.float() for name, tensor in start.items()}})


def _start(encoder_name: str, weights: str, **wanted: Any) -> Path | None:
    """The file of the start for these weights of the encoder, or None."""
    path = find_made_for(STARTS[encoder_name], weights, **wanted) if encoder_name in STARTS else None
    if path is None:
        logger.info("no meta-learned start for these weights of %s: ssm_sam begins like fewshot", encoder_name)
    return path
