"""Initialisations: the decoders that adaptation begins with, the packaged ones and those trained here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, RegistryState, UnknownCheckpoint
from ssmsam.fewshot.task_checkpoint import FEWSHOT, UnusableCheckpoint
from ssmsam.models.fewshot_decoder import TargetDecoder, same_initial_state
from ssmsam.models.registry import load_target_decoder
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.weights import WeightsSource, find_made_for, find_weights, weights_digest

if TYPE_CHECKING:
    from typing import Unpack

logger = logging.getLogger(__name__)

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


SHIPPED = "shipped"
"""The name of the initialisation that came with the weights, in requests; "" wherever names are kept."""
KEPT = 5
"""How many of the newest initialisations stay."""


class Initialisations:
    """The initialisations for one encoder's weights. Several processes may use them: a training publishes, a server
    reads.

    One is kept like a task checkpoint without labels. Task checkpoints hold all that differs from the shipped decoder,
    so that they stay what they are whichever initialisation is used."""

    def __init__(self, folder: Path, shipped: TargetDecoder, *, weights_sha256: str) -> None:
        self.folder = folder
        self.shipped = shipped
        self._weights_sha256 = weights_sha256
        self._registry = CheckpointRegistry(folder / weights_sha256[:16], keep=KEPT, method=SSM_SAM)
        self._wanted = ""
        self._loaded: tuple[TargetDecoder, str] = shipped, ""

    @property
    def state(self) -> RegistryState:
        """As it is on disk now; ``active`` and ``previous`` are "" for the shipped one."""
        return self._registry.state

    def cards(self) -> dict[str, Mapping[str, Any]]:
        """Name -> card of every initialisation that was trained here, the oldest first."""
        return self._registry.cards()

    def current(self) -> tuple[TargetDecoder, str]:
        """The initialisation that is used, and its name. The shipped one where another cannot be read."""
        wanted = self.state.active
        if wanted != self._wanted:
            self._loaded = self._load(wanted) if wanted else (self.shipped, "")
            self._wanted = wanted
        return self._loaded

    def publish(self, decoder: TargetDecoder, card: Mapping[str, Any], *, activate: bool) -> str:
        """Keep a new initialisation under a name of its own, and use it from now on with ``activate``. In one step
        for readers."""
        card = {**card, "method": SSM_SAM, "weights_sha256": self._weights_sha256}
        return self._registry.publish(AdaptedTask(decoder, {}, card), decoder=self.shipped, activate=activate)

    def activate(self, name: str) -> RegistryState:
        """Use an initialisation from now on. Raises UnknownCheckpoint."""
        if name == SHIPPED:
            return self._registry.deactivate()
        return self._registry.activate(name, pin=False)

    def roll_back(self) -> RegistryState:
        """Use the one that was used before."""
        return self._registry.roll_back()

    def _load(self, name: str) -> tuple[TargetDecoder, str]:
        try:
            return self._registry.load(name, self.shipped, weights_sha256=self._weights_sha256).decoder, name
        except (UnusableCheckpoint, UnknownCheckpoint, FileNotFoundError):
            logger.exception("The initialisation %s cannot be read; adapting from the shipped one", name)
            return self.shipped, ""


SSM_SAM = "ssm_sam"

DECODERS: Mapping[str, Callable[..., TargetDecoder]] = {FEWSHOT: load_target_decoder, SSM_SAM: load_ssm_decoder}
"""Method -> what loads its decoder, with the arguments of :func:`ssmsam.models.registry.load_encoder`."""
