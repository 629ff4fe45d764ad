"""The heads of one study folder on disk: which there are, which one answers, and which one must not be replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.head import FEWSHOT, Head, UnusableHead, method_of, read_card
from ssmsam.imaging.writing import whole_file, write_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class UnknownHead(LookupError):
    """There is no head of that name. The message lists those that there are."""


@dataclass(frozen=True)
class ShelfState:
    """``active`` is the head that answers, "" for none yet; a ``pinned`` one answers whatever is annotated later.

    ``previous`` answered before it, "" for none.
    """

    active: str = ""
    pinned: bool = False
    previous: str = ""


class HeadShelf:
    """A folder of heads. Several processes may use it: a training publishes, a server reads.

    ``keep`` of the newest heads stay; the active one and the one before it always do. All are of one ``method``.
    """

    def __init__(self, folder: Path, *, keep: int = 20, method: str = FEWSHOT) -> None:
        self.folder = folder
        self.method = method
        self._keep = keep

    @property
    def state(self) -> ShelfState:
        """As it is on disk now."""
        try:
            return ShelfState(**json.loads((self.folder / "shelf.json").read_text()))
        except FileNotFoundError:
            return ShelfState()

    def names(self) -> list[str]:
        """All heads, the oldest first."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def cards(self) -> dict[str, Mapping[str, Any]]:
        """Name -> card of every head that can be read."""
        found: dict[str, Mapping[str, Any]] = {}
        for name in self.names():
            try:
                found[name] = read_card(self._path(name))
            except (UnusableHead, FileNotFoundError):
                continue
        return found

    def card(self, name: str) -> dict[str, Any]:
        """Raises :class:`UnknownHead` and UnusableHead."""
        return read_card(self.path(name))

    def path(self, name: str) -> Path:
        """The file of a head, for export. Raises :class:`UnknownHead`."""
        if not _NAME.fullmatch(name) or not self._path(name).is_file():
            known = ", ".join(self.names()) or "none yet: annotate a few slices and run the few-shot model"
            raise UnknownHead(f"there is no head {name!r}; there are {known}")
        return self._path(name)

    def load(self, name: str, decoder: TargetDecoder, *, weights_sha256: str) -> Head:
        """Raises :class:`UnknownHead` and UnusableHead."""
        return Head.load(self.path(name), decoder, weights_sha256=weights_sha256)

    def publish(self, head: Head, *, activate: bool = True) -> str:
        """Put a new head on the shelf; its name. It becomes the active one unless another is pinned."""
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
        name = f"{stamp}-{head.support_digest[:8]}"
        with self._lock():
            head.save(self._path(name))
            if activate and not self.state.pinned:
                self._answer(name)
            self._tidy()
        return name

    def replace(self, name: str, head: Head) -> None:
        """Put a head that knows more in the place of the one of that name. One that was removed meanwhile stays so."""
        with self._lock():
            if self._path(name).is_file():
                head.save(self._path(name))

    def add_file(self, data: bytes, name: str) -> str:
        """Put an exported head on the shelf under a name, without activating it. Raises UnusableHead, ValueError."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"a head's name is made of letters, digits, '.', '_' and '-', got {name!r}")
        with self._lock():
            path = self._path(name)
            if path.exists():
                raise ValueError(f"there is a head {name!r} already: choose another name, or remove it first")
            with whole_file(path, path.suffix) as partial:
                partial.write_bytes(data)
                self._require_method(read_card(partial))
        return name

    def activate(self, name: str, *, pin: bool) -> ShelfState:
        """Let a head answer: for going back to an earlier one, and with ``pin`` until :meth:`unpin`."""
        self.path(name)
        with self._lock():
            self._answer(name, pin=pin)
        return self.state

    def deactivate(self) -> ShelfState:
        """Let no head answer."""
        with self._lock():
            self._answer("")
        return self.state

    def roll_back(self) -> ShelfState:
        """Let what answered before the active head answer again, which may be none: then ``active`` is ""."""
        with self._lock():
            self._answer(self.state.previous)
        return self.state

    def unpin(self) -> ShelfState:
        """Let newer heads take over again."""
        with self._lock():
            self._write(replace(self.state, pinned=False))
        return self.state

    def remove(self, name: str) -> None:
        """Raises :class:`UnknownHead`, and ValueError for the active head."""
        self.path(name)
        with self._lock():
            if self.state.active == name:
                raise ValueError(f"{name} is the head that answers: activate another one first")
            if self.state.previous == name:
                self._write(replace(self.state, previous=""))
            self._unlink(name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _answer(self, name: str, *, pin: bool = False) -> None:
        state = self.state
        self._write(ShelfState(name, pin, state.active if name != state.active else state.previous))

    def _require_method(self, card: Mapping[str, Any]) -> None:
        method = method_of(card)
        if method != self.method:
            raise UnusableHead(f"this head is one of {method}, not of {self.method}: import it with method={method}")

    def _write(self, state: ShelfState) -> None:
        write_bytes(self.folder / "shelf.json", json.dumps(vars(state)).encode())

    def _tidy(self) -> None:
        for name in self.names()[: -self._keep]:
            if name not in (self.state.active, self.state.previous):
                self._unlink(name)

    def _unlink(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        self._path(name).with_suffix(".json").unlink(missing_ok=True)
