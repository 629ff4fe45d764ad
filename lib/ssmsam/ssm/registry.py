"""The decoder of SSM-SAM that belongs to each encoder."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from ssmsam.encoders.manifest import PACKAGED, entry
from ssmsam.encoders.weights import find_weights, weights_digest
from ssmsam.fewshot.registry import load_target_decoder
from ssmsam.ssm.network import SelfSamplingDecoder, SsmConfig

logger = logging.getLogger(__name__)

STARTS = {"small": "small_ssm.safetensors"}
"""The meta-learned starts in this package, by encoder."""


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
    wanted = {"folder": folder, "download": download, "allow_unverified": allow_unverified}
    inner = load_target_decoder(encoder_name, device=device, **wanted)  # type: ignore[arg-type]
    weights = weights_digest(find_weights(encoder_name, **wanted))  # type: ignore[arg-type]
    decoder = SelfSamplingDecoder(inner, width=width_of(encoder_name), config=config)
    start = PACKAGED / STARTS.get(encoder_name, "none")
    if start.is_file() and made_for(start) == weights:
        state = {name: tensor.float() for name, tensor in load_file(str(start)).items()}
        decoder.load_state_dict(state)
    else:
        logger.info("no meta-learned start for these weights of %s: ssm_sam begins like fewshot", encoder_name)
    return decoder.to(device).eval().requires_grad_(False)


def width_of(encoder_name: str) -> int:
    """Channels of the encoder's image embedding, known without loading it."""
    if entry(encoder_name).architecture == "small":
        from ssmsam.encoders.small import SPEC

        return SPEC.channels
    return 256  # the neck of every SAM


def made_for(start: Path) -> str:
    """The sha256 of the encoder's weights that a start belongs to."""
    with safe_open(str(start), framework="pt") as file:
        return str((file.metadata() or {}).get("encoder_sha256"))
