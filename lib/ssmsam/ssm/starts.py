"""Starts: the decoders from which heads are adapted, the one that came with the weights and those trained here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, RegistryState, UnknownCheckpoint
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint
from ssmsam.ssm.methods import SSM_SAM

logger = logging.getLogger(__name__)

SHIPPED = "shipped"
"""How the start that came with the weights is asked for. Its name is "" wherever names are kept."""
KEPT = 5
"""How many of the newest starts stay."""


class Starts:
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
        return self._shelf.publish(Head(decoder, {}, card), decoder=self.shipped, activate=activate)

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
