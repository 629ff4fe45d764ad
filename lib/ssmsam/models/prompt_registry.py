"""The prompted mask decoder that belongs to each encoder."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.models.small_encoder import part_of
from ssmsam.models.weights import entry, find_made_for, find_weights, weights_digest

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from ssmsam.models.prompt_sam import SamPromptDecoder

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
    published: bool = False,
) -> PromptDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, from the same weights file.

    For ``medsam_lite`` it is the one that was trained here for clicks, where that belongs to the very weights of the
    encoder; else, which is logged, or where ``published`` is asked for, the published one, which knows boxes only.

    Load the encoder first and keep it: a SAM decoder then shares its network instead of reading the file again.

    The other arguments and errors are those of :func:`ssmsam.models.encoder_registry.load_encoder`.
    """
    architecture = entry(encoder_name).architecture
    wanted: dict[str, Any] = {"folder": folder, "download": download, "allow_unverified": allow_unverified}
    files = decoder_weights(encoder_name, published=published, **wanted)
    path = files[encoder_name]
    if architecture == "small":
        from ssmsam.models.prompt_small import SmallPromptDecoder

        decoder = SmallPromptDecoder.from_file(path)
        decoder.network.to(device)
        return decoder
    from ssmsam.models.prompt_sam import SamPromptDecoder
    from ssmsam.models.sam_encoder import load_sam

    sam = load_sam(encoder_name, path, device=device)
    if encoder_name not in TRAINED:
        return SamPromptDecoder.from_sam(sam)
    trained = files.get(TRAINED[encoder_name])
    if trained is None:
        if not published:
            logger.info("no decoder of ours for these weights of %s: the published one knows boxes only", encoder_name)
        return SamPromptDecoder.from_sam(sam, carries_box=True)
    return _with_weights(sam, trained, device)


def decoder_weights(encoder_name: str, *, published: bool = False, **wanted: Any) -> dict[str, Path]:
    """Name -> file of the weights that :func:`load_decoder` reads: those of the encoder, which hold a decoder too, and
    those of our own decoder where it takes that one's place. ``wanted`` and errors as for :func:`find_weights`."""
    path = find_weights(encoder_name, **wanted)
    if published or encoder_name not in TRAINED:
        return {encoder_name: path}
    trained = find_made_for(TRAINED[encoder_name], weights_digest(path), **wanted)
    return {encoder_name: path} if trained is None else {encoder_name: path, TRAINED[encoder_name]: trained}


def _with_weights(sam: Sam, path: Path, device: str) -> SamPromptDecoder:
    """Copies of SAM's small parts with other weights."""
    from ssmsam.models.prompt_sam import SamPromptDecoder

    parts = {name: copy.deepcopy(getattr(sam, name)) for name in ("prompt_encoder", "mask_decoder")}
    for name, part in parts.items():
        part.load_state_dict(part_of(load_file(str(path)), name))
        part.to(device)
    return SamPromptDecoder(**parts, carries_box=True)
