"""What a submission says: which of its slices are truth, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ssmsam.annotation.annotations import (
    Annotations,
    InvalidSubmission,
    SliceAnnotation,
    SliceKey,
    Source,
    Update,
    check_slice,
    now,
    pack_slices,
)
from ssmsam.annotation.labels import NEGATIVE, fold, known_label, negative_of, read_label_info
from ssmsam.annotation.log import UNNAMED, Assignment, Mark, Served, Verdict
from ssmsam.annotation.partial import Partial, read_partial, with_known_labels
from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import STORED_SLICES, Plane
from ssmsam.volume.volume import Grid, Volume


def on_screen(
    label: str, client: str, plane: Plane, served: Served | None, annotations: Annotations
) -> tuple[dict[int, PackedMask], frozenset[int]]:
    """What a client has on screen of a label, by slice, as far as it is known, empty slices too; and on which of these
    slices that is an annotation, not a prediction."""
    before = dict(served.slices) if served is not None and served.axis == plane.axis else {}
    confirmed = set()
    for index, entry in annotations.annotated(label, plane=plane).items():
        # the client sees its own annotation unless something was served later
        own = served is None or index not in before or (entry.client == client and entry.when >= served.when)
        if entry.known is None and (own or before[index] == entry.mask):
            before[index] = entry.mask
            confirmed.add(index)
    return before, frozenset(confirmed)


@dataclass(frozen=True, eq=False)
class Submission:
    """A mask (slices, rows, columns) of label numbers, and the parameters that came with it."""

    mask: Volume
    params: Mapping[str, Any] = field(default_factory=dict)
    when: str = field(default_factory=now)

    @cached_property
    def values(self) -> frozenset[float]:
        """The numbers that occur in the mask."""
        return frozenset[float]().union(*(_values_of(part) for part in self.mask.array))

    @property
    def odd_value(self) -> float | None:
        """A value that no voxel of a label map has, if there is one: a fraction, or below 0."""
        return next((value for value in sorted(self.values) if not float(value).is_integer() or value < 0), None)

    def mask_of(self, value: int | None) -> np.ndarray:
        """Where the mask has a value, (slices, rows, columns) bool."""
        array = self.mask.array
        return array == value if value in self.values else np.zeros(array.shape, dtype=bool)

    @property
    def client(self) -> str:
        """``client_id``: no proof of identity, many viewers send the same."""
        return str(self.params.get("client_id") or "")


@dataclass(frozen=True, eq=False)
class Context:
    """What the server knows when a submission arrives."""

    annotations: Annotations
    assignments: Sequence[Assignment] = ()
    """Slices that somebody was asked for on this image."""

    served: Mapping[str, Served] = field(default_factory=dict)
    """Label -> the masks that the client has on screen (or, not knowing the client, that anybody has)."""
    labels: Sequence[str] = ()
    """The server's labels, for submissions without ``label_info``."""
    names: Sequence[str] = ()
    """Every label that is known by now: what differs from one of them in spelling only is that label."""

    @property
    def grid(self) -> Grid:
        return self.annotations.grid


def interpret(submission: Submission, context: Context) -> Update:
    """Decide for every label and slice of a submission whether it is truth.

    Per slice, the first that applies: listed in ``partial``; painted with the reserved ``not_<label>``; asked for by
    the server and drawn; clicked on by the user; changed against what was served; not empty where nothing was served.
    What equals a served mask is a prediction, all else stays unknown. Zeros alone never mean that a label is not there:
    a slice that was asked for and not drawn is empty only when ``empty_assigned`` says so (true, or a list of labels).
    With ``partial``, guesses end: only its slices and negative voxels count.
    Raises :class:`InvalidSubmission` when the mask, its labels or its parameters cannot be used.
    """
    values = _read_values(submission, context)
    labels = [name for name in values if not negative_of(name)]
    for name in values:  # a negative may come alone
        if negative_of(name) and negative_of(name) not in labels:
            labels.append(negative_of(name))
    known = {key.label for key in context.annotations.slices}
    partial = read_partial(
        with_known_labels(submission.params.get("partial"), (*labels, *context.names)),
        grid=context.grid,
        labels=labels,
        # zeros alone never mean that a label is not there: who means that, names it
        present=[name for name in labels if values.get(name) in submission.values or name in known],
    )
    notes: list[str] = []
    entries: dict[SliceKey, SliceAnnotation] = {}
    predicted: set[SliceKey] = set()
    unchanged: set[SliceKey] = set()
    for label in labels:
        reader = _LabelReader(submission, context, label, values, partial, notes)
        entries.update(reader.entries())
        predicted |= {
            SliceKey(label, reader.plane.axis, index) for index in reader.drawn if reader.is_prediction(index)
        }
        unchanged |= reader.unchanged()
    partial = partial or Partial()
    withdrawn = partial.withdrawn | context.annotations.declared_whole(partial.reopened)
    return Update(
        context.grid,
        {key: entry for key, entry in entries.items() if key not in withdrawn},
        frozenset(predicted - entries.keys()),
        partial.complete,
        frozenset(labels),
        submission.client,
        submission.when,
        tuple(notes),
        withdrawn,
        partial.reopened & context.annotations.complete,
        frozenset(unchanged - entries.keys() - withdrawn),
    )


def interpret_mark(mark: Mark, context: Context) -> Update:
    """What a mark says by itself, for viewers that cannot submit: the mask on screen is right, or empty.

    Raises :class:`InvalidSubmission` for a slice outside the volume, or when nothing was served there to accept.
    """
    key = check_slice(SliceKey(mark.label, mark.axis, mark.index), context.grid)
    blank = PackedMask.of(np.zeros(key.plane.slice_shape(context.grid), dtype=bool))
    if mark.verdict is Verdict.EMPTY:
        mask = blank
    else:
        served = context.served.get(mark.label)
        before, _ = on_screen(mark.label, mark.client, key.plane, served, context.annotations)
        if mark.index not in before:
            raise InvalidSubmission(
                f"there is no mask of {mark.label} on slice {mark.index} to accept: make one with a click first, "
                "or submit what you drew"
            )
        mask = before[mark.index]
    entry = SliceAnnotation(mask, Source.MESSAGE, mark.client, mark.when)
    return Update(context.grid, {key: entry}, labels=frozenset({mark.label}), client=mark.client, when=mark.when)


class _LabelReader:
    """One label of a submission, slice by slice along the plane of work, beside what had been there before."""

    def __init__(
        self,
        submission: Submission,
        context: Context,
        label: str,
        values: Mapping[str, int],
        partial: Partial | None,
        notes: list[str],
    ) -> None:
        self.submission, self.context, self.label = submission, context, label
        self.partial, self.notes = partial, notes
        self.mask = submission.mask_of(values.get(label))
        self.empty_assigned = _says_empty(submission.params.get("empty_assigned"), label, context.names)
        served = context.served.get(label) or self._unnamed()
        self.negative = submission.mask_of(values.get(NEGATIVE + label))
        self.plane = STORED_SLICES if served is None else Plane(served.axis)
        """The plane of work: along it, slices are compared with what was served."""
        shown = np.flatnonzero(self.plane.stack(self.mask).any(axis=(1, 2)))
        self.drawn = pack_slices(self.mask, self.plane, shown)
        """The submitted slices that are not empty."""
        self.before, self.confirmed = on_screen(label, submission.client, self.plane, served, context.annotations)
        self.prompted = served.prompted if served is not None else frozenset[int]()
        self.served = served is not None

    def entries(self) -> dict[SliceKey, SliceAnnotation]:
        """Slices of this label that are truth."""
        found: dict[SliceKey, SliceAnnotation] = {}
        rules = [self._listed(), self._painted_negative()]
        if self.partial is None:
            rules += [self._assigned(), self._seen()]
        for rule in rules:
            for key, source in rule:
                if key not in found:
                    found[key] = self._annotation(key, source)
        return found

    def is_prediction(self, index: int) -> bool:
        """Whether the submitted slice is what was served, unchanged and unconfirmed."""
        mask = self.drawn.get(index)
        unseen = index not in self.prompted and index not in self.confirmed
        return mask is not None and unseen and mask == self.before.get(index)

    def predicted(self) -> set[SliceKey]:
        """Slices that hold a prediction still."""
        return {SliceKey(self.label, self.plane.axis, index) for index in self.drawn if self.is_prediction(index)}

    def unchanged(self) -> set[SliceKey]:
        """Slices that are annotated as they were submitted."""
        same = (index for index in self.confirmed if self.drawn.get(index) == self.before[index])
        return {SliceKey(self.label, self.plane.axis, index) for index in same}

    def _unnamed(self) -> Served | None:
        """Masks that were asked for without a label, when this label holds one of them unchanged."""
        served = self.context.served.get(UNNAMED)
        if served is None:
            return None
        stack = Plane(served.axis).stack(self.mask)
        drawn = {index: mask for index, mask in served.slices.items() if stack[index].any()}  # else it is another's
        taken = any(np.array_equal(stack[index], mask.array) for index, mask in drawn.items())
        return replace(served, label=self.label, slices=drawn) if taken else None

    def _annotation(self, key: SliceKey, source: Source) -> SliceAnnotation:
        mask = key.plane.stack(self.mask)[key.index]
        known = None
        if source is Source.NEGATIVE:
            area = key.plane.stack(self.negative)[key.index]
            human = not self.is_prediction(key.index)  # a served mask stays unconfirmed beside the strokes
            known = PackedMask.of(area | mask if human else area)
            mask = mask if human else np.zeros_like(mask)
        return SliceAnnotation(PackedMask.of(mask), source, self.submission.client, self.submission.when, known)

    def _listed(self) -> Iterator[tuple[SliceKey, Source]]:
        if self.partial is None:
            return
        for key in sorted(self.partial.annotated | self.partial.empty):
            if key.label != self.label:
                continue
            if key in self.partial.empty and key.plane.stack(self.mask)[key.index].any():
                raise InvalidSubmission(
                    f"partial says that {self.label} is not on slice {key.index}, but the mask has voxels of it there: "
                    "erase them, or list the slice as annotated"
                )
            yield key, Source.CLIENT
        if self.label in self.partial.complete:
            for index in range(self.plane.count(self.context.grid)):
                yield SliceKey(self.label, self.plane.axis, index), Source.COMPLETE

    def _painted_negative(self) -> Iterator[tuple[SliceKey, Source]]:
        for index in np.flatnonzero(self.plane.stack(self.negative).any(axis=(1, 2))):
            yield SliceKey(self.label, self.plane.axis, int(index)), Source.NEGATIVE

    def _assigned(self) -> Iterator[tuple[SliceKey, Source]]:
        unanswered: set[int] = set()
        for assignment in self.context.assignments:
            # a label that was not asked for by name and is nowhere drawn was perhaps only listed by the viewer
            meant = self.label in assignment.labels if assignment.labels else self.mask.any()
            if not meant or not assignment.is_for(self.submission.client):
                continue
            for index in assignment.slices:
                key = check_slice(SliceKey(self.label, assignment.axis, index), self.context.grid)
                if key in self.context.annotations.withdrawn:
                    continue  # asked, answered, and taken back
                if key.plane.stack(self.mask)[index].any():
                    yield key, Source.ASSIGNED
                elif key not in self.context.annotations.slices:
                    # what was once answered is not emptied by a later submission that began afresh
                    if self.empty_assigned:
                        yield key, Source.ASSIGNED
                    else:
                        unanswered.add(index)
        if unanswered and self.mask.any():
            self.notes.append(
                f"asked for and not drawn, left unknown: {_numbers(sorted(unanswered))} ({self.label}). If there is no "
                f"{self.label}, say so: run empty_slice there, or submit with empty_assigned: true"
            )

    def _seen(self) -> Iterator[tuple[SliceKey, Source]]:
        """Clicked, changed and drawn slices."""
        changed = Source.DELTA if self.served else Source.NONEMPTY
        for index, mask in self.drawn.items():
            if index in self.prompted and mask == self.before.get(index):
                yield SliceKey(self.label, self.plane.axis, index), Source.PROMPTED
            elif mask != self.before.get(index):
                yield SliceKey(self.label, self.plane.axis, index), changed
        left = sorted(index for index, mask in self.before.items() if not mask.empty and index not in self.drawn)
        # the submission was made from what had been on screen where some slice of it is still there, unchanged; else
        # the user perhaps began afresh, and the slices that are missing were never looked at
        if any(mask == self.before.get(index) for index, mask in self.drawn.items()):
            for index in left:
                yield SliceKey(self.label, self.plane.axis, index), Source.DELTA
        elif left:
            self.notes.append(
                f"{self.label} is missing on {_numbers(left)}, where there was some; that alone does not count as "
                "empty: mark such slices with empty_slice"
            )


def whole(label: str, annotations: Annotations, served: Served | None) -> np.ndarray:
    """A label's mask (slices, rows, columns) bool as it is on screen: truth where it is known, else what was served."""
    mask, weight = annotations.target(label)
    if served is not None:
        visible = np.zeros_like(mask)
        for index, part in served.slices.items():
            Plane(served.axis).stack(visible)[index] = part.array
        mask = np.where(weight > 0, mask, visible)
    return mask


def complete(
    labels: Iterable[str], annotations: Annotations, served: Mapping[str, Served], *, client: str, when: str
) -> Update:
    """Declare labels finished as they are on screen: annotated slices as annotated, all others as last served.

    What was neither annotated nor served is empty then. Slices that were annotated before keep their annotation.
    """
    entries: dict[SliceKey, SliceAnnotation] = {}
    finished = frozenset(labels)
    for label in finished:
        visible = served.get(label)
        plane = Plane(visible.axis if visible else 0)
        for index, mask in enumerate(plane.stack(whole(label, annotations, visible))):
            key = SliceKey(label, plane.axis, index)
            known = annotations.slices.get(key)
            if known is None or known.known is not None:
                entries[key] = SliceAnnotation(PackedMask.of(mask), Source.COMPLETE, client, when)
    return Update(annotations.grid, entries, complete=finished, labels=finished, client=client, when=when)


MOST_LABELS = 255
"""A file with more values is an image rather than a label; label files hold 8 bits."""


def whole_label(mask: Volume, grid: Grid, label_info: Any, names: Sequence[str]) -> tuple[Update, dict[str, int]]:
    """What a mask (slices, rows, columns) says, and which of its values is which label.

    ``label_info`` names the values, as in submissions; else ``names`` do, from 1, if there are enough; else the labels
    are ``label_1``, ``label_2`` and so on. Labels without a voxel are left out. Raises InvalidSubmission.
    """
    if not mask.grid.matches(grid):
        raise InvalidSubmission(
            f"it is on another grid (shape {mask.shape}, the image {grid.shape}, or another place or direction): "
            "export it with the image as the reference geometry"
        )
    submission = Submission(mask)
    found = sorted(submission.values - {0})
    if not found:
        raise InvalidSubmission("it has no voxel of any label: draw something, or remove the file")
    odd = submission.odd_value
    if odd is not None or len(found) > MOST_LABELS:
        what = f"the value {odd:.6g}" if odd is not None else f"{len(found)} different values"
        raise InvalidSubmission(f"it has {what}, as no label map has: export it as a label map")
    if label_info:
        known = named_values(label_info, fallback=(), known=names, values=found)
        if unnamed := [value for value in found if value not in known.values()]:
            raise InvalidSubmission(f"its label_info does not name the value {unnamed[0]:g}: add it there")
    else:
        enough = found[-1] <= len(names)
        known = {names[int(value) - 1] if enough else f"label_{value:g}": int(value) for value in found}
    values = {name: value for name, value in known.items() if value in found}
    entries = {
        SliceKey(name, 0, index): SliceAnnotation(PackedMask.of(part), Source.COMPLETE, when=submission.when)
        for name, value in values.items()
        for index, part in enumerate(np.asarray(submission.mask_of(value)))
    }
    labels = frozenset(values)
    note = f"read from a label file that was brought along: {', '.join(f'{name} = {n}' for name, n in values.items())}"
    return Update(grid, entries, complete=labels, labels=labels, when=submission.when, notes=(note,)), values


def _read_values(submission: Submission, context: Context) -> dict[str, int]:
    """Label -> voxel value, after checking that the mask is one of this image with these labels."""
    mask = submission.mask
    if not mask.grid.matches(context.grid):
        raise InvalidSubmission(
            f"the mask (shape {mask.shape}) is not on the image's grid (shape {context.grid.shape}): "
            "export it with the image as the reference geometry"
        )
    if (broken := submission.odd_value) is not None:
        raise InvalidSubmission(
            f"the mask has voxels of value {broken:.6g}, but a label's voxels hold a whole number from 1, others 0: "
            "export it as a label map, not as an image, a probability or a signed distance"
        )
    values = named_values(
        submission.params.get("label_info"), fallback=context.labels, known=context.names, values=submission.values
    )
    unnamed = sorted(submission.values - {0, *values.values()})
    if unnamed:
        named = ", ".join(f"{name} = {value}" for name, value in values.items()) or "no label at all"
        raise InvalidSubmission(
            f"the mask has voxels of value {unnamed[0]:g}, but label_info says {named}: name every value in label_info"
        )
    return values


def named_values(
    label_info: Any, *, fallback: Sequence[str], known: Sequence[str], values: Collection[float]
) -> dict[str, int]:
    """:func:`~ssmsam.annotation.labels.read_label_info` with each label under the name by which it is known.

    Raises :class:`InvalidSubmission` where two of its names are spellings of one label.
    """
    found: dict[str, int] = {}
    for name, value in read_label_info(label_info, fallback=fallback, values=values).items():
        label = known_label(name, known)
        twin = next((other for other in found if fold(other) == fold(label)), None)
        if twin is not None:
            raise InvalidSubmission(f"label_info names {name!r} and {twin!r}, which are one label: rename one segment")
        found[label] = value
    return found


def _says_empty(value: Any, label: str, known: Sequence[str]) -> bool:
    """What ``empty_assigned`` says of a label. Raises :class:`InvalidSubmission`."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", ""):
        return value.strip().lower() == "true"
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise InvalidSubmission(f"empty_assigned must be true, false or a list of labels, got {str(value)[:80]!r}")
    return label in {known_label(name, (label, *known)) for name in value}


def _values_of(part: np.ndarray) -> list[float]:
    """The numbers in one slice. Sorting a whole volume to find them takes seconds."""
    if part.dtype.kind in "iu" and part.min() >= 0 and part.max() < 1 << 16:
        return np.flatnonzero(np.bincount(part.ravel())).tolist()
    return np.unique(part).tolist()


def _numbers(indices: Sequence[int]) -> str:
    return f"slice{'s' * (len(indices) > 1)} {', '.join(str(index) for index in indices)}"
