"""The server's side of the work on disk: what was asked for, served and reviewed, and by whom, per image."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
from filelock import FileLock
from pydantic import Field, StrictInt, StrictStr, model_validator

from ssmsam.annotation.annotations import Annotations, SliceAnnotation, SliceKey, Source, pack_slices
from ssmsam.annotation.store import (
    SCHEMA,
    CorruptAnnotations,
    MaskFile,
    Record,
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
from ssmsam.volume.geometry import STORED_SLICES, Plane

PAUSE_S = 300.0
"""A longer gap between two actions of one person is a pause and no work. *Guess*: longer than anybody looks at a slice,
shorter than a call or a coffee."""


class ReviewVerdict(str, Enum):
    """What a second person says of a finished volume."""

    ACCEPT = "accept"
    SEND_BACK = "send_back"
    """It is open again, as the note says why."""


@dataclass(frozen=True)
class Review:
    """One verdict."""

    verdict: ReviewVerdict
    who: str
    when: str
    """ISO 8601, UTC."""
    revision: int
    """The revision of the annotations that it is about."""
    note: str = ""


@dataclass(frozen=True)
class Worker:
    """What one person did on an image. A person is an account where people log in, else a client."""

    last: str
    """When they did something last, ISO 8601, UTC."""
    seconds: float = 0.0
    """How long they worked on it, without pauses (:data:`PAUSE_S`)."""
    annotated: bool = False
    """Whether anything that they said counts or counted, rather than that they looked at it."""

    def after(self, when: str, *, annotated: bool = False) -> Worker:
        """The same after one more action."""
        gap = (datetime.fromisoformat(when) - datetime.fromisoformat(self.last)).total_seconds()
        worked = gap if 0 < gap <= PAUSE_S else 0.0
        return replace(
            self,
            last=max(when, self.last),
            seconds=round(self.seconds + worked, 3),
            annotated=self.annotated or annotated,
        )


@dataclass(frozen=True)
class WorkSummary:
    """What is noted of the work on an image, without the masks that were shown."""

    workers: Mapping[str, Worker] = field(default_factory=dict)
    review: Review | None = None
    """The last one."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """Label -> the Dice in [0, 1] that was expected last on slices that nobody annotated."""

    def accepted(self, revision: int) -> bool:
        """Whether a second person accepted this revision."""
        last = self.review
        return last is not None and last.verdict is ReviewVerdict.ACCEPT and last.revision == revision


@dataclass(frozen=True)
class Agreement:
    """How far two people agree on a label, on the slices that both drew."""

    label: str
    clients: tuple[str, str]
    slices: tuple[SliceKey, ...]
    per_slice: tuple[float, ...]
    dice: float
    """In [0, 1], over the pixels of all these slices; 1 where both say that nothing is there."""


def agreement(annotations: Annotations) -> list[Agreement]:
    """For each label and each pair of clients who annotated a slice of it whole, each the last time that they did.

    What counts only because a label was finished was not drawn, and a mask that was taken over unchanged is one
    person's still. Sorted by label and clients.
    """
    drawn: defaultdict[str, defaultdict[str, dict[SliceKey, SliceAnnotation]]] = defaultdict(lambda: defaultdict(dict))
    for revision in annotations.revisions:
        for key, entry in revision.entries.items():
            if entry.client and entry.known is None and entry.source is not Source.COMPLETE:
                drawn[key.label][entry.client][key] = entry
    return [
        _agreement(label, (one, other), clients[one], clients[other])
        for label, clients in sorted(drawn.items())
        for one, other in combinations(sorted(clients), 2)
        if clients[one].keys() & clients[other].keys()
    ]


def _agreement(
    label: str,
    clients: tuple[str, str],
    one: Mapping[SliceKey, SliceAnnotation],
    other: Mapping[SliceKey, SliceAnnotation],
) -> Agreement:
    keys = sorted(one.keys() & other.keys())
    pairs = [(one[key].mask.array, other[key].mask.array) for key in keys]
    counts = [(int((a & b).sum()), int(a.sum() + b.sum())) for a, b in pairs]
    both, either = (sum(found) for found in zip(*counts, strict=True))
    return Agreement(label, clients, tuple(keys), tuple(_dice(*count) for count in counts), _dice(both, either))


def _dice(both: int, either: int) -> float:
    return 2 * both / either if either else 1.0


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
        mask: np.ndarray | Mapping[int, np.ndarray],
        *,
        label: str,
        client: str = "",
        plane: Plane = STORED_SLICES,
        only: Iterable[int] | None = None,
        prompted: Iterable[int] = (),
        when: str = "",
    ) -> Served:
        """Of a mask (slices, rows, columns), where ``only`` names the slices that the client really takes over; or of
        these slices themselves."""
        if isinstance(mask, Mapping):
            slices = {index: PackedMask.of(part) for index, part in mask.items()}
        else:
            slices = pack_slices(mask, plane, range(mask.shape[plane.axis]) if only is None else only)
        return cls(label, client, plane.axis, slices, frozenset(prompted), when)

    def after(self, earlier: Served | None) -> Served:
        """What is on screen now: this, and of an earlier answer in the same plane the slices that this left alone."""
        if earlier is None or earlier.axis != self.axis:
            return self
        slices = {**earlier.slices, **self.slices}
        # a click counts as long as its answer is on screen
        still = {index for index in earlier.prompted if slices.get(index) == earlier.slices.get(index)}
        sent = {index: earlier.sent_at(index) for index in earlier.slices if index not in self.slices}
        return replace(self, slices=slices, prompted=self.prompted | still, earlier=sent)


class ServedRecord(Record):
    """What a client has on screen of a label, beside the file of its masks."""

    label: StrictStr
    client: StrictStr
    axis: Annotated[StrictInt, Field(ge=0, le=2)]
    when: StrictStr
    earlier: dict[int, StrictStr] = Field(default_factory=dict)
    prompted: tuple[StrictInt, ...]
    indices: tuple[StrictInt, ...]
    shapes: tuple[tuple[StrictInt, StrictInt], ...]
    masks: MaskFile
    sha256: StrictStr

    @classmethod
    def write(cls, path: Path, served: Served) -> ServedRecord:
        """Write the masks; the record of them."""
        masks = list(served.slices.values())
        return cls(
            label=served.label,
            client=served.client,
            axis=served.axis,
            when=served.when,
            earlier=dict(served.earlier),
            prompted=tuple(sorted(served.prompted)),
            indices=tuple(served.slices),
            shapes=tuple(mask.shape for mask in masks),
            masks=path.name,
            sha256=write_masks(path, masks),
        )

    def read(self, folder: Path) -> Served | None:
        """None for masks that are damaged: nobody knows any more what that client has on screen."""
        try:
            masks = read_masks(folder / self.masks, self.shapes, sha256=self.sha256)
        except CorruptAnnotations as error:
            logger.error("What a client was shown is not known any more: %s", error)
            return None
        slices = dict(zip(self.indices, masks, strict=True))
        return Served(self.label, self.client, self.axis, slices, frozenset(self.prompted), self.when, self.earlier)

    @model_validator(mode="after")
    def _one_mask_for_each_slice(self) -> ServedRecord:
        if len(self.indices) != len(self.shapes):
            raise ValueError("slices without a mask")
        return self


class WorkRecord(Record):
    """The work on one image."""

    version: StrictInt = Field(alias="schema")
    assignments: list[Assignment] = Field(default_factory=list)

    served: list[ServedRecord] = Field(default_factory=list)
    opened: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    """Screen -> when it opened the image last."""
    workers: dict[StrictStr, Worker] = Field(default_factory=dict)
    """By the person, as :class:`~ssmsam.annotation.log.Worker` says who that is."""
    reviews: list[Review] = Field(default_factory=list)
    """The oldest first."""
    expected: dict[StrictStr, float] = Field(default_factory=dict)
    """Label -> the Dice that was expected last of it where nobody annotated."""
    last: StrictInt = 0
    """The number of the last file of masks."""


logger = logging.getLogger(__name__)

INDEX = "work.json"
_MOST_SCREENS = 256
"""How many screens are remembered to have opened an image, and how many people to have worked on it; a guess at what a
large department needs."""
_MOST_REVIEWS = 100
"""A guess: more than anybody will send one image back."""


@dataclass(frozen=True)
class WorkLog:
    """Assignments and served masks of all images under ``root``, beside their annotations.

    Several processes may write at once. A damaged log is put aside and begun anew: what was annotated is not in it.
    Readers and writers raise ``UnknownSchema`` for what another version wrote.
    """

    root: Path
    _summaries: dict[Path, tuple[tuple[int, int, int], WorkSummary]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """File -> its inode, time and size, and what it says."""

    def summary(self, image: str) -> WorkSummary:
        """What is noted of an image, without masks. Fast: it is asked for every few seconds, of every image."""
        path = image_folder(self.root, image) / INDEX
        try:
            status = path.stat()
        except OSError:
            self._summaries.pop(path, None)
            return WorkSummary()
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        if self._summaries.get(path, (None,))[0] != stamp:
            work = self._read(image)
            last = work.reviews[-1] if work.reviews else None
            self._summaries[path] = stamp, WorkSummary(work.workers, last, work.expected)
        return self._summaries[path][1]

    def worked(self, image: str, who: str, when: str) -> None:
        """Remember that somebody annotated something."""
        with self._changing(image) as (work, _):
            _note_work(work, who, when, annotated=True)

    def review(self, image: str, review: Review) -> None:
        """Remember what a second person says."""
        with self._changing(image) as (work, _):
            work.reviews = [*work.reviews, review][-_MOST_REVIEWS:]

    def expect(self, image: str, dice: Mapping[str, float]) -> None:
        """Remember the Dice that is expected of labels, in the place of what was expected of them before."""
        with self._changing(image) as (work, _):
            work.expected = {**work.expected, **dice}

    def assign(self, assignment: Assignment) -> None:
        """Remember slices that a client was asked for."""
        with self._changing(assignment.image) as (work, _):
            work.assignments.append(assignment)

    def assignments(self, image: str) -> list[Assignment]:
        """Everything that was ever asked for on an image, the oldest first."""
        return self._read(image).assignments

    def open(self, image: str, screen: str, when: str, *, who: str = "") -> None:
        """Remember that an image was opened on a screen, which shows nothing of it yet."""
        with self._changing(image) as (work, _):
            _note_work(work, who, when)
            opened = {**work.opened, screen: when}
            work.opened = dict(sorted(opened.items(), key=lambda one: one[1])[-_MOST_SCREENS:])

    def opened(self, image: str, screen: str) -> str:
        """When a screen opened an image last; "" where that is not known."""
        return self._read(image).opened.get(screen, "")

    def labels(self, image: str) -> list[str]:
        """The labels that anybody was sent a mask of."""
        return sorted({record.label for record in self._read(image).served} - {UNNAMED})

    def serve(self, image: str, *sent: Served, who: str = "") -> None:
        """Remember what a client was sent, on top of what it has on screen."""
        if not sent:
            return
        with self._changing(image) as (work, outdated):
            for served in sent:
                _note_work(work, who, served.when)
                folder, whose = self._folder(image), (served.label, served.client)
                known = next((old for old in work.served if (old.label, old.client) == whose), None)
                work.last += 1
                now = served.after(known.read(folder) if known else None)
                record = ServedRecord.write(folder / f"served-{work.last:06d}.npz", now)
                work.served = [*(old for old in work.served if old is not known), record]
                outdated += [folder / known.masks] if known else []

    def served(self, image: str, *, client: str) -> dict[str, Served]:
        """Label -> what a client has on screen, or else (client ids prove nothing) what was last sent to anyone."""
        chosen: dict[str, ServedRecord] = {}
        folder = self._folder(image)
        with FileLock(folder / "lock"):  # the files of masks are replaced while serving
            for record in self._read(image).served:
                if record.client == client or record.label not in chosen or chosen[record.label].client != client:
                    chosen[record.label] = record
            found = {label: record.read(folder) for label, record in chosen.items()}
        return {label: served for label, served in found.items() if served is not None}

    def _folder(self, image: str) -> Path:
        folder = image_folder(self.root, image)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _read(self, image: str) -> WorkRecord:
        path = image_folder(self.root, image) / INDEX
        if path.exists():
            try:
                content = read_json(path, schema=SCHEMA)
                with one_error(path):
                    return WorkRecord.model_validate(content)
            except UnknownSchema:
                raise
            except CorruptAnnotations as error:
                with suppress(FileNotFoundError):
                    kept = put_aside(path)
                    logger.warning("%s It is kept as %s, and the log of that image begins anew", error, kept)
        return WorkRecord(schema=SCHEMA)

    @contextmanager
    def _changing(self, image: str) -> Iterator[tuple[WorkRecord, list[Path]]]:
        """An image's work, which is written at the end, and a list of files to remove then. Nobody else changes it."""
        folder, outdated = self._folder(image), list[Path]()
        with FileLock(folder / "lock"):
            work = self._read(image)
            yield work, outdated
            write_json(folder / INDEX, work.model_dump(mode="json", by_alias=True))
            for path in outdated:
                path.unlink(missing_ok=True)


def _note_work(work: WorkRecord, who: str, when: str, *, annotated: bool = False) -> None:
    """Count an action of a person; of nobody where ``who`` is ""."""
    if who and when:
        known = work.workers.get(who, Worker(when))
        workers = {**work.workers, who: known.after(when, annotated=annotated)}
        work.workers = dict(sorted(workers.items(), key=lambda one: one[1].last)[-_MOST_SCREENS:])
