"""The task checkpoints of one study folder: which there are, which one answers, and which must not be replaced; and the
initialisations that adaptation begins with, which are kept alike."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssmsam.fewshot.adapted_task import (
    LOCAL,
    AdaptedTask,
    SupportCache,
    read_local,
    read_task,
    remove_task,
    write_support,
    write_task,
)  # fmt: skip
from ssmsam.fewshot.task_checkpoint import TaskCheckpoint, UnusableCheckpoint, method_of, read_card
from ssmsam.files import private_folder, write_bytes
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.registry import FEWSHOT, SSM_SAM

logger = logging.getLogger(__name__)

SUPPORT = "support"
"""The folder of the support cache within that of the checkpoints."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_STATE = "shelf"
_TAKEN = (_STATE, "training")
"""Names of other files in the folder."""


class UnknownCheckpoint(LookupError):
    """There is no task checkpoint of that name. The message lists those that there are."""


@dataclass(frozen=True)
class RegistryState:
    """``active`` is the checkpoint that answers, "" for none yet; a ``pinned`` one answers whatever is annotated later.

    ``previous`` answered before it, "" for none.
    """

    active: str = ""
    pinned: bool = False
    previous: str = ""


class CheckpointRegistry:
    """A folder of task checkpoints. Several processes may use it: a training publishes, a server reads.

    ``NAME.safetensors`` is the checkpoint, all of which may leave the machine. ``NAME.json`` beside it says which
    slices it was adapted to, and ``support/`` is the cache of these slices; both stay. The folder is its owner's alone.
    ``keep`` of the newest checkpoints stay; the active one and the one before it always do. All are of one ``method``.
    """

    def __init__(self, folder: Path, *, keep: int = 20, method: str = FEWSHOT) -> None:
        self.folder = folder
        self.method = method
        self.cache = SupportCache(folder / SUPPORT)
        self._keep = keep

    @property
    def state(self) -> RegistryState:
        """As it is on disk now. Where that is damaged none answers, until one is chosen or fits what is annotated."""
        try:
            found = RegistryState(**json.loads((self.folder / f"{_STATE}.json").read_text()))
        except FileNotFoundError:
            return RegistryState()
        except (ValueError, TypeError, RecursionError):
            logger.warning(
                "which task checkpoint answers cannot be read in %s: none does until one is chosen", self.folder
            )
            return RegistryState()
        sound = isinstance(found.active, str) and isinstance(found.pinned, bool) and isinstance(found.previous, str)
        return found if sound else RegistryState()

    def names(self) -> list[str]:
        """All checkpoints, the oldest first."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def cards(self) -> dict[str, Mapping[str, Any]]:
        """Name -> card of every checkpoint that can be read, with what is known of it on this machine."""
        found: dict[str, Mapping[str, Any]] = {}
        for name in self.names():
            try:
                found[name] = self._card(name)
            except (UnusableCheckpoint, FileNotFoundError):
                continue
        return found

    def card(self, name: str) -> dict[str, Any]:
        """Raises :class:`UnknownCheckpoint` and UnusableCheckpoint."""
        self.path(name)
        return self._card(name)

    def path(self, name: str) -> Path:
        """The file of a checkpoint. Raises :class:`UnknownCheckpoint`."""
        if not _NAME.fullmatch(name) or not self._path(name).is_file():
            known = ", ".join(self.names()) or "none yet: annotate a few slices and run the few-shot model"
            raise UnknownCheckpoint(f"there is no task checkpoint {name!r}; there are {known}")
        return self._path(name)

    def load(self, name: str, decoder: TargetDecoder, *, weights_sha256: str) -> AdaptedTask:
        """A task with the labelled slices that it was adapted to where these are in the cache, ``summarised`` where
        not. ``decoder`` is the one that came with the encoder's weights, and stays as it is.

        Raises :class:`UnknownCheckpoint` and UnusableCheckpoint.
        """
        return read_task(self.path(name), base=decoder, weights_sha256=weights_sha256, cache=self.cache)

    def labelled(self, name: str) -> dict[str, Any]:
        """Which slices a checkpoint was adapted to, ``support``, and their ``support_digest``; empty where that is not
        known here."""
        return {key: value for key, value in read_local(self._path(name)).items() if key in LOCAL}

    def publish(self, task: AdaptedTask, *, decoder: TargetDecoder, activate: bool = True) -> str:
        """Put a new task's checkpoint here; its name. It becomes the active one unless another is pinned.

        ``decoder`` is the one that came with the encoder's weights.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        name = f"{stamp}-{secrets.token_hex(4)}"
        with self._lock():
            write_task(self._path(name), task, base=decoder, cache=self.cache)
            if activate and not self.state.pinned:
                self._answer(name)
            for old in self.names()[: -self._keep]:
                if old not in (self.state.active, self.state.previous):
                    remove_task(self._path(old), cache=self.cache)
        return name

    def replace(self, name: str, task: AdaptedTask, *, decoder: TargetDecoder) -> None:
        """Put a task that knows more in the place of the one of that name. One that was removed meanwhile stays so."""
        with self._lock():
            if self._path(name).is_file():
                write_task(self._path(name), task, base=decoder, cache=self.cache)

    def remember(self, name: str, task: AdaptedTask) -> None:
        """Keep the labelled slices of a task that were made again. Its checkpoint stays as it is."""
        with self._lock():
            if self._path(name).is_file():
                write_support(self._path(name), task, cache=self.cache)

    def add_file(self, data: bytes, name: str, decoder: TargetDecoder, *, weights_sha256: str) -> str:
        """Put an exported checkpoint here under a name, without activating it. Only what it means is written.

        Raises UnusableCheckpoint, also for those of other weights, and ValueError.
        """
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise ValueError(
                f"a task checkpoint's name is made of letters, digits, '.', '_' and '-', and is not "
                f"{' or '.join(_TAKEN)}; got {name!r}"
            )
        checkpoint = TaskCheckpoint.from_bytes(data, "the file")
        method = method_of(checkpoint.card)
        if method != self.method:
            raise UnusableCheckpoint(
                f"this task checkpoint is one of {method[:40]}, not of {self.method}: "
                f"import it with method={method[:40]}"
            )
        checkpoint.require_made_with(decoder, weights_sha256, "the file")
        checkpoint.adapted(decoder, "the file")
        with self._lock():
            if self._path(name).exists():
                raise ValueError(
                    f"there is a task checkpoint {name!r} already: choose another name, or remove it first"
                )
            checkpoint.save(self._path(name))
        return name

    def activate(self, name: str, *, pin: bool) -> RegistryState:
        """Let a checkpoint answer: for going back to an earlier one, and with ``pin`` until :meth:`unpin`."""
        self.path(name)
        return self._answered(name, pin=pin)

    def deactivate(self) -> RegistryState:
        """Let no checkpoint answer."""
        return self._answered("")

    def roll_back(self) -> RegistryState:
        """Let what answered before the active one answer again, which may be none: then ``active`` is ""."""
        return self._answered(None)

    def unpin(self) -> RegistryState:
        """Let newer ones take over again."""
        with self._lock():
            self._write(replace(self.state, pinned=False))
        return self.state

    def remove(self, name: str) -> None:
        """Raises :class:`UnknownCheckpoint`, and ValueError for the active one."""
        self.path(name)
        with self._lock():
            if self.state.active == name:
                raise ValueError(f"{name} is the task checkpoint that answers: activate another one first")
            if self.state.previous == name:
                self._write(replace(self.state, previous=""))
            remove_task(self._path(name), cache=self.cache)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _card(self, name: str) -> dict[str, Any]:
        return {**read_card(self._path(name)), **self.labelled(name)}

    def _lock(self) -> FileLock:
        private_folder(self.folder)
        return FileLock(self.folder / ".lock", mode=0o600)

    def _answered(self, name: str | None, *, pin: bool = False) -> RegistryState:
        """Let a checkpoint answer, ``None`` standing for the one before."""
        with self._lock():
            self._answer(self.state.previous if name is None else name, pin=pin)
            return self.state

    def _answer(self, name: str, *, pin: bool = False) -> None:
        state = self.state
        self._write(RegistryState(name, pin, state.active if name != state.active else state.previous))

    def _write(self, state: RegistryState) -> None:
        write_bytes(self.folder / f"{_STATE}.json", json.dumps(vars(state)).encode())


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
