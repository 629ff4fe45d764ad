"""All that was annotated on one volume, with everything that was said before; and what few-shot methods learn from."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pydantic import StrictInt, StrictStr

from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import STORED_SLICES, Grid, Plane


class InvalidSubmission(ValueError):
    """What a client submitted cannot be used as it is. The message tells the user what to do."""


class OtherImage(InvalidSubmission):
    """The annotations of an image were made on another one, which had its name."""

    def __init__(self, image: str, annotated: Grid, found: Grid) -> None:
        moved = annotated.shape == found.shape
        differs = "in another place" if moved else f"shape {annotated.shape}, now {found.shape}"
        super().__init__(
            f"the annotations of {image!r} were made on another image of this name ({differs}): remove its label "
            "'partial', or give the new image another name"
        )


class Source(str, Enum):
    """Why a slice counts as annotated."""

    CLIENT = "client"
    """The submission listed it."""
    COMPLETE = "complete"
    """The label was declared finished on the whole volume."""
    MESSAGE = "message"
    """The user marked it with a message model: accepted, or empty."""
    NEGATIVE = "negative"
    """The user painted where the label is not; only painted voxels are known."""
    ASSIGNED = "assigned"
    """The user was asked for it and submitted."""
    PROMPTED = "prompted"
    """The user clicked on it and submitted the answer."""
    DELTA = "delta"
    """The user changed what was served."""
    NONEMPTY = "nonempty"
    """The user drew on it, and nothing had been served."""


class SliceKey(NamedTuple):
    """One label on one slice. ``axis`` is the array axis that the slice is perpendicular to: 0 stored slices, 1 rows, 2
    columns."""

    label: StrictStr
    axis: StrictInt
    index: StrictInt  # type: ignore[assignment]  # nobody counts in a key

    @property
    def plane(self) -> Plane:
        return Plane(self.axis)


@dataclass(frozen=True)
class SliceAnnotation:
    """What a person said about one label on one slice."""

    mask: PackedMask
    source: Source
    client: str = ""
    when: str = ""
    """ISO 8601, UTC."""
    known: PackedMask | None = None
    """Where the mask is truth; None for the whole slice."""

    @property
    def empty(self) -> bool:
        """Whether the label is nowhere on the slice, as far as it is known."""
        return self.mask.empty

    @property
    def weight(self) -> np.ndarray:
        """(height, width) float32: 1 where the mask is truth, 0 where nothing is known."""
        if self.known is None:
            return np.ones(self.mask.shape, dtype=np.float32)
        return self.known.array.astype(np.float32)

    def adds_to(self, old: SliceAnnotation) -> bool:
        """Whether this says anything that ``old`` does not say already."""
        if (self.mask, self.known) == (old.mask, old.known):
            return False
        if old.known is None and self.known is not None:  # less is said, which matters only if it disagrees
            known = self.known.array
            return not np.array_equal(self.mask.array & known, old.mask.array & known)
        return True


def now() -> str:
    """The time as annotations note it: ISO 8601, UTC. Each is later than the one before and :func:`not_before`: clocks
    are set back, and what was done later must not look earlier."""
    with _telling:
        told = datetime.fromtimestamp(time.time(), UTC)
        _latest[0] = max(told, _latest[0] + timedelta(microseconds=1))
        return _latest[0].isoformat(timespec="microseconds")


def not_before(seconds: float) -> None:
    """From here on :func:`now` is later than this, in seconds since 1970: when the server wrote last."""
    with _telling, suppress(ValueError, OverflowError, OSError):  # years that are none
        _latest[0] = max(datetime.fromtimestamp(seconds, UTC), _latest[0])


_telling = threading.Lock()
_latest = [datetime.min.replace(tzinfo=UTC)]


@dataclass(frozen=True, eq=False)
class Update:
    """What one submission says, to be merged into what is known.

    ``predicted`` are slices whose mask came from a model and was not confirmed. ``complete`` are labels that the
    client declared finished on the whole volume. ``notes`` are sentences for the user. Raises
    :class:`InvalidSubmission` when a slice or a mask does not fit the grid.
    """

    grid: Grid
    entries: Mapping[SliceKey, SliceAnnotation] = field(default_factory=dict)
    predicted: frozenset[SliceKey] = frozenset()
    complete: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    """Labels that the submission named, with or without anything annotated."""
    client: str = ""
    when: str = ""
    notes: tuple[str, ...] = ()
    withdrawn: frozenset[SliceKey] = frozenset()
    """Slices that are annotated no longer. Their labels are not finished then."""
    reopened: frozenset[str] = frozenset()
    """Labels that are finished no longer, with all their slices as they are."""
    unchanged: frozenset[SliceKey] = frozenset()
    """Slices that a mask shows as they are annotated already."""
    undoes: frozenset[int] = frozenset()
    """The revisions that this takes back."""
    number: int = 0
    """Of the revision that it became: ``entries`` holds only slices that it annotated anew or differently then."""

    def __post_init__(self) -> None:
        for key in (*self.entries, *self.predicted, *self.withdrawn):
            check_slice(key, self.grid)
        for key, entry in self.entries.items():
            shape = key.plane.slice_shape(self.grid)
            if {entry.mask.shape, entry.known.shape if entry.known else shape} != {shape}:
                raise InvalidSubmission(
                    f"the mask of {key.label} on slice {key.index} has shape {entry.mask.shape}, but the slices of "
                    f"this plane have {shape}: submit it on the grid of the stored image"
                )

    @property
    def keys(self) -> frozenset[SliceKey]:
        """The slices that it changes."""
        return self.withdrawn | self.entries.keys()

    @property
    def says_something(self) -> bool:
        """Whether it changes a slice, or what is finished."""
        return bool(self.keys or self.complete or self.reopened)


@dataclass(frozen=True, eq=False)
class Annotations:
    """What is known of one volume: all revisions, the oldest first, and what follows from them. A slice of a label is
    annotated (a person vouches for its mask, which may be empty), predicted, or unknown, which is not background.

    A slice's mask is the one of the last revision that annotated it; earlier ones stay in their revisions.
    """

    grid: Grid
    revisions: tuple[Update, ...] = ()

    @property
    def revision(self) -> int:
        """The number of the last revision; 0 before the first."""
        return self.revisions[-1].number if self.revisions else 0

    @cached_property
    def slices(self) -> Mapping[SliceKey, SliceAnnotation]:
        """The annotated slices as they are known now, sorted by label, axis and slice."""
        known: dict[SliceKey, SliceAnnotation] = {}
        for revision in self.revisions:
            known.update(revision.entries)
            for key in revision.withdrawn:
                known.pop(key, None)
        return dict(sorted(known.items()))

    @cached_property
    def withdrawn(self) -> frozenset[SliceKey]:
        """Slices that were annotated once and are no longer."""
        return frozenset[SliceKey]().union(*(revision.withdrawn for revision in self.revisions)) - set(self.slices)

    @cached_property
    def predicted(self) -> frozenset[SliceKey]:
        """Slices that hold an unconfirmed prediction and no annotation."""
        found = frozenset[SliceKey]().union(*(revision.predicted for revision in self.revisions))
        return found - self.slices.keys()

    @cached_property
    def complete(self) -> frozenset[str]:
        """Labels that were declared finished on the whole volume, and not opened again."""
        found = frozenset[str]()
        for update in self.revisions:
            found = (found | update.complete) - update.reopened - {key.label for key in update.withdrawn}
        return found

    @property
    def reopened(self) -> bool:
        """Whether a label was taken back after it had been declared finished, and is not finished now."""
        taken_back = frozenset[str]().union(*(revision.reopened for revision in self.revisions))
        return bool(taken_back - self.complete)

    @property
    def finished(self) -> bool:
        """Whether every label that has an annotated slice was declared finished, and there is one."""
        return bool(self.slices) and {key.label for key in self.slices} <= self.complete

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label that a submission named, sorted."""
        named = frozenset[str]().union(*(revision.labels for revision in self.revisions))
        return tuple(sorted(named | {key.label for key in (*self.slices, *self.predicted)}))

    def annotated(self, label: str, *, plane: Plane = STORED_SLICES) -> dict[int, SliceAnnotation]:
        """Slice number -> annotation of one label, ascending."""
        return {key.index: entry for key, entry in self.slices.items() if (key.label, key.axis) == (label, plane.axis)}

    def declared_whole(self, labels: Collection[str]) -> frozenset[SliceKey]:
        """Slices that count only because their label was declared finished."""
        return frozenset(
            key for key, entry in self.slices.items() if key.label in labels and entry.source is Source.COMPLETE
        )

    def taken_back(self, client: str, *, when: str = "") -> Update:
        """What takes back the last action of a client that still counts: its slices and labels are as they were.

        What somebody changed since then stays. Raises :class:`InvalidSubmission` when nothing is left.
        """
        undone = frozenset[int]().union(*(revision.undoes for revision in self.revisions))
        standing = [one for one in self.revisions if not one.undoes and one.number not in undone]
        own = [one for one in standing if one.client == client and one.says_something]
        while own:
            last = [one for one in own if one is own[-1] or (one.when and one.when == own[-1].when)]
            found = self._without(last, standing, client=client, when=when)
            if found.entries or found.withdrawn or found.complete or found.reopened:
                return found
            own = [one for one in own if one not in last]  # others changed all of it since
        raise InvalidSubmission("there is nothing of yours to take back on this image")

    def _without(self, last: Sequence[Update], standing: Sequence[Update], *, client: str, when: str) -> Update:
        """What leads to a state without the ``last`` revisions, except for what later ``standing`` ones changed."""
        numbers = frozenset(revision.number for revision in last)
        before = replace(self, revisions=tuple(one for one in standing if one.number < min(numbers)))
        changed = {key for one in standing if one.number > max(numbers) for key in one.keys}
        touched = frozenset[SliceKey]().union(*(revision.keys for revision in last))
        mine = touched - changed
        restored = {key: replace(before.slices[key], client=client, when=when) for key in mine if key in before.slices}
        return Update(
            self.grid,
            restored,
            complete=frozenset().union(*(one.reopened for one in last)) & before.complete,
            client=client,
            when=when,
            notes=tuple(
                f"slice {key.index} of {key.label} was changed since then: left as it is"
                for key in sorted(touched & changed)
            ),
            withdrawn=(mine & self.slices.keys()) - restored.keys(),
            reopened=frozenset().union(*(one.complete for one in last)) & self.complete,
            undoes=numbers,
        )

    def merge(self, update: Update) -> Annotations:
        """What is known after one more submission.

        Nothing annotated before is lost. A slice that is annotated again is replaced. A submission without news
        changes nothing, not even the revision. Raises :class:`InvalidSubmission` when it is on another grid.
        """
        if not self.grid.matches(update.grid):
            raise InvalidSubmission(
                f"the submission is on another grid (shape {update.grid.shape}) than the stored image "
                f"(shape {self.grid.shape}), in shape, place or direction: export it on the image's own grid"
            )
        news = replace(
            update,
            entries={
                key: entry
                for key, entry in update.entries.items()
                if key not in self.slices or entry.adds_to(self.slices[key])
            },
            predicted=update.predicted - self.predicted - self.slices.keys() - update.entries.keys(),
            complete=update.complete - self.complete,
            labels=update.labels - set(self.labels),
            withdrawn=update.withdrawn & self.slices.keys(),
            reopened=update.reopened & self.complete,
            unchanged=frozenset(),
            number=self.revision + 1,
        )
        if not (news.says_something or news.predicted or news.labels):
            return self
        return replace(self, revisions=(*self.revisions, news))

    def target(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Mask and weight of a label on the whole grid: bool and float32, both (slices, rows, columns).

        The weight is 1 where the mask is truth and 0 elsewhere: what is unknown is not background. Where slices of
        two planes cross, the later revision decides.
        """
        mask = np.zeros(self.grid.shape, dtype=bool)
        weight = np.zeros(self.grid.shape, dtype=np.float32)
        for revision in self.revisions:
            for key, entry in revision.entries.items():
                if key.label == label and self.slices.get(key) is entry:
                    known = entry.weight > 0
                    key.plane.stack(mask)[key.index][known] = entry.mask.array[known]
                    key.plane.stack(weight)[key.index][known] = 1
        return mask, weight


def label_map(
    annotations: Annotations, *, order: Sequence[str] = (), only: Collection[str] | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """All annotated masks as one array (slices, rows, columns), and which value means which label.

    Labels that have an annotated slice get the values 1 to N, first those named in ``order``, then the others by
    name; ``only`` leaves out all others. uint8, or uint16 for more than 255 labels. Where two labels were drawn on the
    same voxel, the later revision counts; within one, the higher value. Zero is background only on annotated slices.
    """
    named = {key.label for key in annotations.slices if only is None or key.label in only}
    labels = [*(name for name in order if name in named), *sorted(named - set(order))]
    values = {name: value for value, name in enumerate(labels, start=1)}
    array = np.zeros(annotations.grid.shape, np.uint8 if len(values) < 256 else np.uint16)
    for revision in annotations.revisions:
        for key, entry in sorted(revision.entries.items(), key=lambda item: values.get(item[0].label, 0)):
            if key.label in values and annotations.slices.get(key) is entry:
                area, value = key.plane.stack(array)[key.index], values[key.label]
                known = entry.weight > 0
                area[known & ~entry.mask.array & (area == value)] = 0
                area[known & entry.mask.array] = value
    return array, values


def covered_voxels(annotations: Annotations, array: np.ndarray, values: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Label -> where (slices, rows, columns) bool it is, while a :func:`label_map` gives the voxel to one drawn over
    it; only those that have such voxels."""
    found: dict[str, np.ndarray] = {}
    if len(values) < 2:
        return found
    for label, value in values.items():
        beneath = annotations.target(label)[0] & (array != value)
        if beneath.any():
            found[label] = beneath
    return found


def check_slice(key: SliceKey, grid: Grid) -> SliceKey:
    """The key itself. Raises :class:`InvalidSubmission` when the volume has no such slice."""
    if not key.label:
        raise InvalidSubmission("a label needs a name: send one for every entry of label_info")
    count = key.plane.count(grid)
    if not 0 <= key.index < count:
        raise InvalidSubmission(
            f"slice {key.index} ({key.label}) is not in the volume: along this axis it has slices 0 to {count - 1}"
        )
    return key


def pack_slices(mask: np.ndarray, plane: Plane, indices: Iterable[int]) -> dict[int, PackedMask]:
    """Some slices of a mask (slices, rows, columns), packed."""
    stack = plane.stack(mask)
    return {int(index): PackedMask.of(stack[index]) for index in indices}


@dataclass(frozen=True)
class SupportSlice:
    """One annotated slice of one label."""

    image: str
    key: SliceKey
    annotation: SliceAnnotation
    grid: Grid = field(compare=False)
    """Of its image, when it was annotated."""

    @property
    def label(self) -> str:
        return self.key.label

    @property
    def plane(self) -> Plane:
        return self.key.plane

    @property
    def index(self) -> int:
        return self.key.index

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool."""
        return self.annotation.mask.array


@dataclass(frozen=True)
class SupportSet:
    """Annotated slices of one or more images, sorted by image, label, axis and slice."""

    slices: tuple[SupportSlice, ...] = ()

    @classmethod
    def of(cls, annotations: Mapping[str, Annotations]) -> SupportSet:
        """Every annotated slice of the images: image id -> what is known of it."""
        return cls(
            tuple(
                SupportSlice(image, key, entry, known.grid)
                for image, known in sorted(annotations.items())
                for key, entry in known.slices.items()
            )
        )

    def only(
        self, *, label: str | None = None, images: Collection[str] | None = None, nonempty: bool = False
    ) -> SupportSet:
        """The slices of a label, of some images, and with ``nonempty`` those whose mask is not empty."""
        return SupportSet(
            tuple(
                item
                for item in self.slices
                if (label is None or item.label == label)
                and (images is None or item.image in images)
                and not (nonempty and item.annotation.empty)
            )
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({item.label for item in self.slices}))

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(sorted({item.image for item in self.slices}))

    def __iter__(self) -> Iterator[SupportSlice]:
        return iter(self.slices)

    def __len__(self) -> int:
        return len(self.slices)
