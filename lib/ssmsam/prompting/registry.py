"""The prompted mask decoder that belongs to each encoder."""

from __future__ import annotations

from pathlib import Path

from ssmsam.encoders.manifest import entry
from ssmsam.encoders.weights import find_weights
from ssmsam.prompting.decoder import PromptDecoder


def load_decoder(
    encoder_name: str,
    *,
    folder: Path | str | None = None,
    download: bool = False,
    device: str = "cpu",
    allow_unverified: bool = False,
) -> PromptDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, from the same weights file.

    Load the encoder first and keep it: a SAM decoder then shares its network instead of reading the file again.

    The arguments and errors are those of :func:`ssmsam.encoders.registry.load_encoder`.
    """
    architecture = entry(encoder_name).architecture
    path = find_weights(encoder_name, folder=folder, download=download, allow_unverified=allow_unverified)
    if architecture == "small":
        from ssmsam.prompting.small_decoder import SmallPromptDecoder

        decoder = SmallPromptDecoder.from_file(path)
        decoder.network.to(device)
        return decoder
    from ssmsam.encoders.sam import load_sam
    from ssmsam.prompting.sam_decoder import SamPromptDecoder

    sam = load_sam(encoder_name, path, device=device)
    return SamPromptDecoder.from_sam(sam, boxes_only=architecture == "lite_medsam")
