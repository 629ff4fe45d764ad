"""The server's side of the work on disk: what was asked for, served and marked, per image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ssmsam.annotation.annotations import pack_slices
from ssmsam.annotation.slice_state import STORED_SLICES
from ssmsam.annotation.store import (
    SCHEMA,
    CorruptAnnotations,
    UnknownSchema,
    image_folder,
    one_error,
    read_json,
    read_masks,
    write_json,
    write_masks,
)
from ssmsam.files import put_aside
from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import Plane

UNNAMED = ""
"""The label of a mask that was asked for without one: some viewers never say which segment is selected."""


SHARED_IDS = frozenset({"", "user-xyz"})
"""Client ids that say nothing: what viewers send when nobody set one."""


def reader_of(client: str, host: str) -> str:
    """Who a request comes from: its client, and where the client's id says nothing, its machine too.

    Example:
        >>> reader_of("user-xyz", "10.0.0.1"), reader_of("reader-a", "10.0.0.1")
        ('user-xyz@10.0.0.1', 'reader-a')
    """
    return f"{client}@{host}" if client in SHARED_IDS and host else client


def name_of(reader: str) -> str:
    """The id that a reader sent; "" for those who sent none."""
    return reader.partition("@")[0]


@dataclass(frozen=True)
class Assignment:
    """Slices of an image that a client was asked to annotate."""

    id: str
    image: str
    slices: tuple[int, ...]
    axis: int = 0
    """The array axis that the slices are perpendicular to."""
    labels: tuple[str, ...] = ()
    """The labels asked for; none for whichever label the user draws."""
    client: str = ""
    """Who was asked; "" for anybody."""
    when: str = ""

    def is_for(self, client: str) -> bool:
        """Whether a client may have worked on it. A client without a name may be anyone."""
        return not name_of(self.client) or not name_of(client) or self.client == client


class Verdict(str, Enum):
    """What a user says of a slice with a message model."""

    ACCEPTED = "accepted"
    """The mask on screen is right."""
    EMPTY = "empty"
    """The label is not on this slice."""


@dataclass(frozen=True)
class Mark:
    """A user's verdict on one label on one slice."""

    label: str
    index: int
    verdict: Verdict
    axis: int = 0
    client: str = ""
    when: str = ""


@dataclass(frozen=True)
class Served:
    """The masks of one label that a client has on screen because the server sent them."""

    label: str
    client: str = ""
    axis: int = 0
    slices: Mapping[int, PackedMask] = field(default_factory=dict)
    """What was sent per slice, empty slices too. A slice that is missing was never sent."""
    prompted: frozenset[int] = frozenset()
    """Slices on which the user clicked to get it."""
    when: str = ""
    earlier: Mapping[int, str] = field(default_factory=dict)
    """When slices were sent that were not sent with the others, at ``when``."""

    def sent_at(self, index: int) -> str:
        """When a slice was sent."""
        return self.earlier.get(index, self.when)

    @classmethod
    def of(
        cls,
        mask: np.ndarray,
        *,
        label: str,
        client: str = "",
        plane: Plane = STORED_SLICES,
        only: Iterable[int] | None = None,
        prompted: Iterable[int] = (),
        when: str = "",
    ) -> Served:
        """Of a mask (slices, rows, columns); ``only`` names the slices that the client really takes over."""
        indices = range(mask.shape[plane.axis]) if only is None else only
        return cls(label, client, plane.axis, pack_slices(mask, plane, indices), frozenset(prompted), when)

    def after(self, earlier: Served | None) -> Served:
        """What is on screen now: this, and of an earlier answer in the same plane the slices that this left alone."""
        if earlier is None or earlier.axis != self.axis:
            return self
        slices = {**earlier.slices, **self.slices}
        # a click counts as long as its answer is on screen
        still = {index for index in earlier.prompted if slices.get(index) == earlier.slices.get(index)}
        sent = {index: earlier.sent_at(index) for index in earlier.slices if index not in self.slices}
        return replace(self, slices=slices, prompted=self.prompted | still, earlier=sent)


logger = logging.getLogger(__name__)

INDEX = "work.json"
_EMPTY: dict[str, Any] = {"schema": SCHEMA, "assignments": [], "marks": [], "served": [], "opened": {}, "last": 0}
_MOST_SCREENS = 256
"""How many screens are remembered to have opened an image; a guess at what a large department needs."""


@dataclass(frozen=True)
class WorkLog:
    """Assignments, served masks and marks of all images under ``root``, beside their annotations.

    Several processes may write at once. A damaged log is put aside and begun anew: what was annotated is not in it.
    Readers and writers raise ``UnknownSchema`` for what another version wrote.
    """

    root: Path

    def assign(self, assignment: Assignment) -> None:
        """Remember slices that a client was asked for."""
        with self._changing(assignment.image) as work:
            work.content["assignments"].append(asdict(assignment))

    def assignments(self, image: str) -> list[Assignment]:
        """Everything that was ever asked for on an image, the oldest first."""
        return [_read_assignment(written) for written in self._read(image)["assignments"]]

    def mark(self, image: str, mark: Mark) -> None:
        """Remember a verdict; it takes the place of an earlier one of the same client on the same slice."""
        written = {**asdict(mark), "verdict": mark.verdict.value}
        with self._changing(image) as work:
            same = ("label", "axis", "index", "client")
            marks = [old for old in work.content["marks"] if any(old[name] != written[name] for name in same)]
            work.content["marks"] = [*marks, written]

    def marks(self, image: str, *, client: str) -> list[Mark]:
        """The verdicts of one client on an image."""
        found = [_read_mark(written) for written in self._read(image)["marks"]]
        return [mark for mark in found if mark.client == client]

    def open(self, image: str, screen: str, when: str) -> None:
        """Remember that an image was opened on a screen, which shows nothing of it yet."""
        with self._changing(image) as work:
            opened = {**work.content.get("opened", {}), screen: when}
            work.content["opened"] = dict(sorted(opened.items(), key=lambda one: one[1])[-_MOST_SCREENS:])

    def opened(self, image: str, screen: str) -> str:
        """When a screen opened an image last; "" where that is not known."""
        return str(self._read(image).get("opened", {}).get(screen, ""))

    def labels(self, image: str) -> list[str]:
        """The labels that anybody was sent a mask of."""
        return sorted({str(written["label"]) for written in self._read(image)["served"]} - {UNNAMED})

    def serve(self, image: str, served: Served) -> None:
        """Remember what a client was sent, on top of what it has on screen."""
        with self._changing(image) as work:
            known = _find(work.content["served"], served.label, served.client)
            now = served.after(self._read_served(image, known) if known else None)
            number = work.content["last"] = work.content["last"] + 1
            name = f"served-{number:06d}.npz"
            written = {
                "label": now.label,
                "client": now.client,
                "axis": now.axis,
                "when": now.when,
                "earlier": {str(index): when for index, when in now.earlier.items()},
                "prompted": sorted(now.prompted),
                "indices": list(now.slices),
                "shapes": [list(mask.shape) for mask in now.slices.values()],
                "masks": name,
                "sha256": write_masks(work.folder / name, list(now.slices.values())),
            }
            work.content["served"] = [old for old in work.content["served"] if old is not known] + [written]
            work.outdated = work.folder / known["masks"] if known else None

    def served(self, image: str, *, client: str) -> dict[str, Served]:
        """Label -> what a client has on screen, or else (client ids prove nothing) what was last sent to anyone."""
        chosen: dict[str, Mapping[str, Any]] = {}
        with FileLock(self._folder(image) / "lock"):  # the files of masks are replaced while serving
            for written in self._read(image)["served"]:
                if written["client"] == client or chosen.get(written["label"], {}).get("client") != client:
                    chosen[written["label"]] = written
            found = {label: self._read_served(image, written) for label, written in chosen.items()}
        return {label: served for label, served in found.items() if served is not None}

    def _read_served(self, image: str, written: Mapping[str, Any]) -> Served | None:
        """None for masks that are damaged: nobody knows any more what that client has on screen."""
        try:
            masks = read_masks(self._folder(image) / written["masks"], _shapes(written), sha256=written["sha256"])
        except CorruptAnnotations as error:
            logger.error("What a client was shown is not known any more: %s", error)
            return None
        return _served(written, masks)

    def _folder(self, image: str) -> Path:
        folder = image_folder(self.root, image)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _read(self, image: str) -> dict[str, Any]:
        path = image_folder(self.root, image) / INDEX
        if path.exists():
            try:
                return _checked(read_json(path, schema=SCHEMA), path)
            except UnknownSchema:
                raise
            except CorruptAnnotations as error:
                with suppress(FileNotFoundError):
                    kept = put_aside(path)
                    logger.warning("%s It is kept as %s, and the log of that image begins anew", error, kept)
        return {key: _copy(value) for key, value in _EMPTY.items()}

    def _changing(self, image: str) -> _Change:
        return _Change(self, image)


class _Change:
    """Read, change and write an image's records while nobody else does."""

    def __init__(self, log: WorkLog, image: str) -> None:
        self.folder = log._folder(image)
        self.outdated: Path | None = None
        self._read = lambda: log._read(image)
        self._lock = FileLock(self.folder / "lock")

    def __enter__(self) -> _Change:
        self._lock.acquire()
        try:
            self.content = self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                write_json(self.folder / INDEX, self.content)
                if self.outdated is not None:
                    with suppress(FileNotFoundError):
                        self.outdated.unlink()
        finally:
            self._lock.release()


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a log, if all of it can be read. Raises ``CorruptAnnotations``."""
    with one_error(path):
        for written in content["assignments"]:
            _read_assignment(written)
        for written in content["marks"]:
            _read_mark(written)
        for written in content["served"]:
            _served(written, [PackedMask(shape, b"") for shape in _shapes(written)])
            if not isinstance(written["masks"], str) or not isinstance(written["sha256"], str):
                raise TypeError("a mask without a file")
        named = [one for kind in ("assignments", "marks", "served") for one in content[kind]]
        texts = [one.get(key, "") for one in named for key in ("id", "image", "label", "client", "when")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name or a time that is none")
        if not isinstance(content["last"], int):
            raise TypeError("no number of the last mask")
        if not all(isinstance(when, str) for when in content.get("opened", {}).values()):
            raise TypeError("a time that is none")
    return content


def _read_assignment(written: Mapping[str, Any]) -> Assignment:
    return Assignment(**{**written, "slices": tuple(written["slices"]), "labels": tuple(written["labels"])})


def _read_mark(written: Mapping[str, Any]) -> Mark:
    return Mark(**{**written, "verdict": Verdict(written["verdict"])})


def _shapes(written: Mapping[str, Any]) -> list[tuple[int, int]]:
    return [(height, width) for height, width in written["shapes"]]


def _served(written: Mapping[str, Any], masks: Sequence[PackedMask]) -> Served:
    return Served(
        written["label"],
        written["client"],
        written["axis"],
        dict(zip(written["indices"], masks, strict=True)),
        frozenset(written["prompted"]),
        written["when"],
        {int(index): when for index, when in written.get("earlier", {}).items()},
    )


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict)) else value


def _find(served: list[dict[str, Any]], label: str, client: str) -> dict[str, Any] | None:
    return next((old for old in served if (old["label"], old["client"]) == (label, client)), None)
