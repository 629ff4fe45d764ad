"""The prompted mask decoder that belongs to each encoder."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ssmsam.encoders.manifest import entry
from ssmsam.encoders.small import part_of
from ssmsam.encoders.weights import find_made_for, find_weights, weights_digest
from ssmsam.prompting.decoder import PromptDecoder

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ssmsam.prompting.sam_decoder import SamPromptDecoder

logger = logging.getLogger(__name__)

TRAINED = {"medsam_lite": "medsam_lite_decoder"}
"""The decoders of ours in the manifest that take the place of a published one, by encoder."""


def load_decoder(
    encoder_name: str,
    *,
    folder: Path | str | None = None,
    download: bool = False,
    device: str = "cpu",
    allow_unverified: bool = False,
) -> PromptDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, from the same weights file.

    For ``medsam_lite`` it is the one that was trained here for clicks, where that belongs to the very weights of the
    encoder; else, which is logged, the published one, which knows boxes only.

    Load the encoder first and keep it: a SAM decoder then shares its network instead of reading the file again.

    The arguments and errors are those of :func:`ssmsam.encoders.registry.load_encoder`.
    """
    architecture = entry(encoder_name).architecture
    wanted: dict[str, Any] = {"folder": folder, "download": download, "allow_unverified": allow_unverified}
    path = find_weights(encoder_name, **wanted)
    if architecture == "small":
        from ssmsam.prompting.small_decoder import SmallPromptDecoder

        decoder = SmallPromptDecoder.from_file(path)
        decoder.network.to(device)
        return decoder
    from ssmsam.encoders.sam import load_sam
    from ssmsam.prompting.sam_decoder import SamPromptDecoder

    sam = load_sam(encoder_name, path, device=device)
    if encoder_name not in TRAINED:
        return SamPromptDecoder.from_sam(sam)
    trained = _trained(encoder_name, weights_digest(path), **wanted)
    if trained is None:
        return SamPromptDecoder.from_sam(sam, carries_box=True)
    return _with_weights(sam, trained, device)


def _trained(encoder_name: str, encoder_sha256: str, **wanted: Any) -> Path | None:
    """The file of our decoder for these weights of the encoder, or None."""
    path = find_made_for(TRAINED[encoder_name], encoder_sha256, **wanted)
    if path is None:
        logger.info("no decoder of ours for these weights of %s: the published one knows boxes only", encoder_name)
    return path


def _with_weights(sam: Sam, path: Path, device: str) -> SamPromptDecoder:
    """Copies of SAM's small parts with other weights."""
    from ssmsam.prompting.sam_decoder import SamPromptDecoder

    parts = {name: copy.deepcopy(getattr(sam, name)) for name in ("prompt_encoder", "mask_decoder")}
    for name, part in parts.items():
        part.load_state_dict(part_of(load_file(str(path)), name))
        part.to(device)
    return SamPromptDecoder(**parts, carries_box=True)
