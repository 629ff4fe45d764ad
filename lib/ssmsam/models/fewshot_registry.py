"""The few-shot decoder that belongs to each encoder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safetensors.torch import load_file

from ssmsam.models.fewshot_decoder import TargetDecoder, same_start
from ssmsam.models.small_encoder import part_of
from ssmsam.models.volume_head import OBJECT_DESCRIPTORS, SLICE_DESCRIPTORS, VolumeHead
from ssmsam.models.weights import entry, find_made_for, find_weights, weights_digest

VOLUME_HEAD = "volume_head"
TRAINED = {"medsam_lite": "medsam_lite_fewshot"}
"""Encoders for which a decoder was trained here, and the name of its weights."""


def load_target_decoder(
    encoder_name: str,
    *,
    folder: Path | str | None = None,
    download: bool = False,
    device: str = "cpu",
    allow_unverified: bool = False,
) -> TargetDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, from the same weights file.

    The arguments and errors are those of :func:`ssmsam.models.encoder_registry.load_encoder`.
    """
    path = find_weights(encoder_name, folder=folder, download=download, allow_unverified=allow_unverified)
    if entry(encoder_name).architecture == "small":
        from ssmsam.models.fewshot_small import TargetNetwork

        network = TargetNetwork()
        network.load_state_dict(part_of(load_file(str(path)), "fewshot"))
        return network.to(device).eval().requires_grad_(False)
    if encoder_name in TRAINED:
        wanted = {"folder": folder, "download": download, "allow_unverified": allow_unverified}
        trained = find_made_for(TRAINED[encoder_name], weights_digest(path), **wanted)
        if trained is not None:
            return _fused(trained).to(device)
    from ssmsam.models.fewshot_sam import SamTargetNetwork
    from ssmsam.models.sam_encoder import load_sam

    sam = load_sam(encoder_name, path, device=device)
    with same_start():
        return SamTargetNetwork.from_sam(sam).eval().requires_grad_(False)


@cache
def load_volume_head() -> VolumeHead:
    """What judges proposals along a volume, for every decoder: it comes with the package. Raises CorruptWeights."""
    path = find_weights(VOLUME_HEAD)
    head = VolumeHead(SLICE_DESCRIPTORS, OBJECT_DESCRIPTORS)
    head.load_state_dict({name: tensor.float() for name, tensor in load_file(str(path)).items()})
    return head.eval().requires_grad_(False)


def _fused(path: Path) -> TargetDecoder:
    from ssmsam.models.fewshot_fused import FusedTargetNetwork

    network = FusedTargetNetwork()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(str(path)).items()})
    return network.eval().requires_grad_(False)
