"""Initialisations: the decoders that adaptation begins with, the packaged ones and those trained here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, RegistryState, UnknownCheckpoint
from ssmsam.fewshot.task_checkpoint import FEWSHOT, UnusableCheckpoint
from ssmsam.models.fewshot_decoder import TargetDecoder, same_start
from ssmsam.models.registry import load_target_decoder
from ssmsam.models.self_sampling import SelfSamplingDecoder, SelfSamplingDecoderConfig
from ssmsam.models.weights import find_made_for, find_weights, weights_digest

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
    config: SelfSamplingDecoderConfig | None = None,
) -> SelfSamplingDecoder:
    """The decoder for the embeddings of ``load_encoder(encoder_name, ...)``, frozen, in evaluation mode.

    It begins with the packaged start that was meta-learned for the very weights of the encoder; for others, which is
    logged, with the target decoder of :func:`load_target_decoder`, whose arguments and errors
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


SHIPPED = "shipped"
"""How the start that came with the weights is asked for. Its name is "" wherever names are kept."""
KEPT = 5
"""How many of the newest starts stay."""


class Initialisations:
    """The starts for one encoder's weights. Several processes may use them: a training publishes, a server reads.

    A start is kept like a head that knows no label. Heads hold all that differs from the shipped decoder, so that they
    stay what they are whichever start is used.
    """

    def __init__(self, folder: Path, shipped: TargetDecoder, *, weights_sha256: str) -> None:
        self.folder = folder
        self.shipped = shipped
        self._weights_sha256 = weights_sha256
        self._shelf = CheckpointRegistry(folder / weights_sha256[:16], keep=KEPT, method=SSM_SAM)
        self._shelf.migrate(shipped, weights_sha256=weights_sha256)
        self._asked = ""
        self._loaded: tuple[TargetDecoder, str] = shipped, ""

    @property
    def state(self) -> RegistryState:
        """As it is on disk now; ``active`` and ``previous`` are "" for the shipped one."""
        return self._shelf.state

    def cards(self) -> dict[str, Mapping[str, Any]]:
        """Name -> card of every start that was trained here, the oldest first."""
        return self._shelf.cards()

    def current(self) -> tuple[TargetDecoder, str]:
        """The start that is used, and its name. The shipped one where another cannot be read."""
        asked = self.state.active
        if asked != self._asked:
            self._loaded = self._load(asked) if asked else (self.shipped, "")
            self._asked = asked
        return self._loaded

    def publish(self, decoder: TargetDecoder, card: Mapping[str, Any], *, activate: bool) -> str:
        """Keep a new start under a name of its own, and use it from now on if so told. In one step for readers."""
        card = {**card, "method": SSM_SAM, "weights_sha256": self._weights_sha256}
        return self._shelf.publish(AdaptedTask(decoder, {}, card), decoder=self.shipped, activate=activate)

    def activate(self, name: str) -> RegistryState:
        """Use a start from now on. Raises UnknownCheckpoint."""
        if name == SHIPPED:
            return self._shelf.deactivate()
        return self._shelf.activate(name, pin=False)

    def roll_back(self) -> RegistryState:
        """Use the one that was used before."""
        return self._shelf.roll_back()

    def _load(self, name: str) -> tuple[TargetDecoder, str]:
        try:
            return self._shelf.load(name, self.shipped, weights_sha256=self._weights_sha256).decoder, name
        except (UnusableCheckpoint, UnknownCheckpoint, FileNotFoundError):
            logger.exception("The start %s cannot be read; adapting from the shipped one", name)
            return self.shipped, ""


SSM_SAM = "ssm_sam"

DECODERS: Mapping[str, Callable[..., TargetDecoder]] = {FEWSHOT: load_target_decoder, SSM_SAM: load_ssm_decoder}
"""Method -> what loads its decoder, with the arguments of :func:`ssmsam.models.registry.load_encoder`."""
