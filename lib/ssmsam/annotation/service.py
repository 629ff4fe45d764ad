"""What clients do to the annotations of a set of images: submit, mark, change, finish, withdraw."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ssmsam.annotation.annotations import (
    Annotations,
    InvalidSubmission,
    OtherImage,
    SliceAnnotation,
    SliceKey,
    Source,
    Update,
    check_slice,
    not_before,
    now,
)
from ssmsam.annotation.interpretation import (
    Context,
    Submission,
    complete,
    interpret,
    interpret_mark,
    named_values,
    on_screen,
    whole,
)
from ssmsam.annotation.labels import is_reserved, known_label, negative_of
from ssmsam.annotation.log import INDEX as WORK
from ssmsam.annotation.log import UNNAMED, Mark, Served, WorkLog
from ssmsam.annotation.partial import read_partial, with_known_labels
from ssmsam.annotation.store import INDEX, AnnotationStore, image_folder
from ssmsam.files import WRITING
from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Grid

_AXES = {0: "", 1: "rows ", 2: "columns "}


def summarise(update: Update) -> str:
    """A few plain lines: which slices count as annotated, which are empty, what is not counted and why."""
    whole = [key for key, entry in update.entries.items() if entry.known is None and not entry.empty]
    empty = [key for key, entry in update.entries.items() if entry.known is None and entry.empty]
    partly = [key for key, entry in update.entries.items() if entry.known is not None]
    lines = [
        f"{title}: {_slices(keys)}"
        for title, keys in (
            ("counted as annotated", whole),
            ("counted as empty", empty),
            ("counted where painted", partly),
            ("not confirmed, still predictions", sorted(update.predicted)),
            ("withdrawn", sorted(update.withdrawn)),
        )
        if keys
    ]
    if not (update.entries or update.withdrawn or update.complete or update.reopened):
        already = _slices(sorted(update.unchanged))
        lines.insert(0, f"nothing new, annotated already: {already}" if already else "no slice counts as annotated")
    if update.complete:
        lines.append(f"complete: {', '.join(sorted(update.complete))}")
    if update.reopened:
        lines.append(f"open again: {', '.join(sorted(update.reopened))}")
    return "\n".join((*lines, *update.notes))


@dataclass(frozen=True)
class FinishedLabel:
    """What a finished label holds."""

    slices: int
    """Slices that show it."""
    ml: float
    """Its volume in millilitres."""
    annotated: int
    """Those of its slices that a person checked one by one."""
    predicted: int
    """Those that were taken as they were on screen."""
    empty: int
    """Slices that count as without it."""


def finished_labels(annotations: Annotations, labels: Iterable[str]) -> dict[str, FinishedLabel]:
    """Label -> what it holds now, for the receipt of a finished volume."""
    voxel_ml = abs(float(np.linalg.det(annotations.grid.affine[:3, :3]))) / 1000
    found = {}
    for label in sorted(labels):
        known = [entry for key, entry in annotations.slices.items() if key.label == label]
        entries = [entry for entry in known if not entry.empty]
        taken = sum(entry.source is Source.COMPLETE for entry in entries)
        mask, _ = annotations.target(label)
        ml = round(int(mask.sum()) * voxel_ml, 1)
        found[label] = FinishedLabel(len(entries), ml, len(entries) - taken, taken, len(known) - len(entries))
    return found


def describe_finished(held: Mapping[str, FinishedLabel]) -> str:
    """As in: liver on 24 slices (1403.2 ml; 3 checked, 21 as proposed) and on none of 20 others."""
    return "; ".join(
        f"{label} on {one.slices} slice{'s' * (one.slices != 1)} ({one.ml:g} ml; {one.annotated} checked, "
        f"{one.predicted} as proposed) and on none of {one.empty} others"
        for label, one in held.items()
    )


def _slices(keys: Sequence[SliceKey]) -> str:
    """As in: 31, 58, 90 (liver); 5-12 (spleen)."""
    groups = groupby(sorted(keys), key=lambda key: (key.label, key.axis))
    return "; ".join(
        f"{_AXES[axis]}{_ranges([key.index for key in members])} ({label})" for (label, axis), members in groups
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, three and more neighbours as a range."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


NOTHING_SHOWN = (
    "nothing of this image was shown on your screen since it was opened, so there is nothing to finish: run fewshot "
    "(or load the masks), look through the slices, accept or correct one of each label, then finish"
)
NOTHING_CHECKED = "nothing can be finished yet: look at every slice, and accept or correct at least one of each label"


@dataclass(frozen=True)
class AnnotationService:
    """The annotations and the work log under ``root``.

    Its methods say what an action means, as an :class:`Update`; only :meth:`merge` and :meth:`forget` change anything.
    All of them raise :class:`InvalidSubmission` for what cannot be used, and ``CorruptAnnotations``.
    """

    root: Path
    labels: tuple[str, ...] = ()
    """The labels that clients are offered, for submissions that do not name theirs."""

    def go_on(self) -> None:
        """Note what is done from here on as later than what was done before, though the clock was set back since."""
        files = self.root.glob(f"*/{INDEX}"), self.root.glob(f"*/{WORK}")
        not_before(max((file.stat().st_mtime for found in files for file in found), default=0.0))

    @cached_property
    def store(self) -> AnnotationStore:
        return AnnotationStore(self.root)

    @cached_property
    def log(self) -> WorkLog:
        return WorkLog(self.root)

    def known(self, image: str, grid: Grid) -> Annotations:
        """What is known of an image with this grid."""
        found = self.store.load(image)
        if found is not None and not found.grid.matches(grid):
            raise OtherImage(image, found.grid, grid)
        return found or Annotations(grid)

    def submitted(self, image: str, submission: Submission, grid: Grid) -> Update:
        """What a submitted mask says."""
        client = submission.client
        return interpret(
            submission,
            Context(
                self.known(image, grid),
                assignments=self.log.assignments(image),
                served=self.log.served(image, client=client),
                labels=self.labels,
                names=self.names(image),
            ),
        )

    @property
    def annotated_names(self) -> tuple[str, ...]:
        """The labels that are offered, and those that are annotated on any image."""
        annotated = {label for one in self.store.overviews().values() for label in one.annotated}
        return tuple(dict.fromkeys((*self.labels, *sorted(annotated))))

    def names(self, image: str) -> tuple[str, ...]:
        """Every label that is known by now: these, and what was drawn on this image."""
        return tuple(dict.fromkeys((*self.annotated_names, *self.log.labels(image))))

    def opened(self, image: str, *, client: str, who: str = "") -> None:
        """A client opened an image: its screen shows nothing of it yet."""
        self.log.open(image, client, now(), who=who)

    def on_screen(self, image: str, submission: Submission) -> list[Served]:
        """What a submission shows of its client's screen, to be noted as served: what is gone by the next one was
        erased by a person, while slices that this one does not hold were perhaps never loaded."""
        label_info, names = submission.params.get("label_info"), self.names(image)
        values = named_values(label_info, fallback=self.labels, known=names, values=submission.values)
        before = self.log.served(image, client=submission.client)
        found = []
        for label, value in values.items():
            if negative_of(label):
                continue
            mask = submission.mask_of(value)
            if label in before or mask.any():
                plane = Plane(before[label].axis if label in before else 0)
                found.append(Served.of(mask, label=label, client=submission.client, plane=plane, when=submission.when))
        return found

    def screen(self, image: str, grid: Grid, *, client: str) -> dict[str, np.ndarray]:
        """Label -> mask (slices, rows, columns) bool of everything that a client was served, as it is on its screen.

        :data:`UNNAMED` holds what it asked for without a label.
        """
        known = self.known(image, grid)
        return {label: whole(label, known, served) for label, served in self._own(image, client).items()}

    def shown_again(
        self, image: str, array: np.ndarray, values: Mapping[str, int], known: Annotations, *, client: str
    ) -> None:
        """Note that a client was sent masks again, as a label map (slices, rows, columns), on the slices of which
        something is known: those that it had, and those that were annotated since."""
        own, when, sent = self._own(image, client), now(), list[Served]()
        for label, value in values.items():
            plane = _plane(own.get(label))
            visible, _ = on_screen(label, client, plane, own.get(label), known)
            only = sorted({*visible, *known.annotated(label, plane=plane)})
            shown = array == value
            sent.append(Served.of(shown, label=label, client=client, plane=plane, only=only, when=when))
        self.log.serve(image, *sent)

    def marked(self, image: str, mark: Mark, grid: Grid) -> Update:
        """What a verdict on one slice says: the mask on that client's screen is right, or the label is not there."""
        served = self._shown_to(image, mark.client, mark.label, mark.index)
        context = Context(self.known(image, grid), served={} if served is None else {mark.label: served})
        return interpret_mark(mark, context)

    def drawn(self, image: str, key: SliceKey, mask: np.ndarray, grid: Grid, *, client: str) -> Update:
        """One label on one slice is as ``mask`` (height, width) bool, which may be empty: what a client drew."""
        if is_reserved(key.label):
            raise InvalidSubmission(f"{key.label[:40]!r} is no label that a slice can be about: choose an organ")
        key = check_slice(key._replace(label=known_label(key.label, self.names(image))), grid)
        self.known(image, grid)
        entry = SliceAnnotation(PackedMask.of(mask), Source.CLIENT, client, now())
        return Update(grid, {key: entry}, labels=frozenset({key.label}), client=client, when=entry.when)

    def changed(self, image: str, partial: Any, grid: Grid, *, client: str) -> Update:
        """What ``partial`` says without a mask: listed slices are right as they are on that client's screen."""
        known, own = self.known(image, grid), self._own(image, client)
        annotated = {key.label for key in known.slices}
        partial = with_known_labels(partial, self.names(image))
        said = read_partial(partial, grid=grid, labels={*known.labels, *own, *self.labels}, present=annotated)
        if said is None:
            raise InvalidSubmission("partial is missing: say which slices to change")
        if unseen := sorted(said.complete - annotated - own.keys()):
            names = ", ".join(unseen)
            raise InvalidSubmission(f"{names} cannot be complete: no slice of it is annotated, and you were shown none")
        finished = complete(said.complete, known, own, client=client, when=now())
        listed = {
            key: SliceAnnotation(
                self._mask_of(image, key, known, key in said.empty, client), Source.CLIENT, client, now()
            )
            for key in said.annotated | said.empty
        }
        return replace(
            finished,
            entries={**finished.entries, **listed},
            labels=finished.labels | {key.label for key in listed},
            withdrawn=said.withdrawn | known.declared_whole(said.reopened),
            reopened=said.reopened & known.complete,
        )

    def finished(self, image: str, grid: Grid, *, client: str, labels: Collection[str] = ()) -> Update:
        """Labels declared finished as they are on that client's screen: those that it was shown on every slice since
        it opened the image, and of which a person checked a slice; of ``labels``, or of all. The notes name the others.
        """
        known, own = self.known(image, grid), self._own(image, client)
        for label in set(labels) - own.keys():
            if UNNAMED in own:  # it was asked for without a label, which is named now
                own[label] = replace(own[UNNAMED], label=label)
        opened = self.log.opened(image, client)
        visible = {label: _visible(label, known, own.get(label), client, opened) for label in own.keys() | known.labels}
        unfinished = {key.label for key in known.slices} - known.complete
        wanted = (set(labels) or unfinished | {label for label, slices in visible.items() if slices}) - {UNNAMED}
        if not any(visible.get(label) for label in wanted):
            raise InvalidSubmission(NOTHING_SHOWN)
        missing = {label: _why_open(label, known, visible, own.get(label)) for label in sorted(wanted)}
        notes = tuple(f"{label} stays open: {why}" for label, why in missing.items() if why)
        ready = [label for label, why in missing.items() if not why]
        if not ready:
            raise InvalidSubmission("; ".join((NOTHING_CHECKED, *notes)))
        return replace(complete(ready, known, own, client=client, when=now()), notes=notes)

    def clicked_label(
        self, image: str, grid: Grid, *, client: str, axis: int, index: int, yx: tuple[int, int] | None
    ) -> str:
        """The label that a client means which names none: the one under its click at pixel (y, x) of the slice, else
        the one that it was served last."""
        known, own = self.known(image, grid), self._own(image, client)
        under = set()
        for label in {*own, *(key.label for key in known.slices)} - {UNNAMED}:
            visible, _ = on_screen(label, client, SliceKey(label, axis, index).plane, own.get(label), known)
            if yx is not None and index in visible and visible[index].array[yx]:
                under.add(label)
        times = {label: served.when for label, served in own.items()}
        last = {label for label, when in times.items() if when == max(times.values())}
        meant = under if len(under) == 1 else last
        if len(meant) == 1 and UNNAMED not in meant:
            return meant.pop()
        if meant <= {UNNAMED}:
            raise InvalidSubmission(f"it is not known which label slice {index} is about: {_CHOOSE}")
        names = " or ".join(sorted(meant - {UNNAMED}))
        raise InvalidSubmission(f"slice {index} could be about {names}: click inside its mask, or {_CHOOSE}")

    def merge(self, image: str, update: Update) -> Annotations:
        """Add what an action says to what is known. Withdrawn masks stay on screen, as predictions."""
        before = self.store.load(image)
        merged = self.store.merge(image, update)
        gone = sorted(update.withdrawn & (before.slices.keys() if before else set()))
        for (label, axis), keys in groupby(gone, key=lambda key: (key.label, key.axis)):
            # beneath a slice that was said to be empty lies what was there before
            entries = {key.index: before.slices[key] for key in keys if not before.slices[key].empty} if before else {}
            for client in {update.client, *(entry.client for entry in entries.values())}:
                masks = {index: entry.mask for index, entry in entries.items()}
                self.log.serve(image, Served(label, client, axis, masks, when=now()))
        return merged

    def forget(self, image: str) -> None:
        """Remove everything that is known of an image."""
        folder = image_folder(self.root, image)
        gone = folder.with_name(f"{WRITING}{uuid4().hex}")
        with suppress(FileNotFoundError):
            folder.rename(gone)  # in one step: what is left of a folder would count as damaged
            shutil.rmtree(gone, ignore_errors=True)

    def _mask_of(self, image: str, key: SliceKey, known: Annotations, empty: bool, client: str) -> PackedMask:
        if empty:
            return PackedMask.of(np.zeros(key.plane.slice_shape(known.grid), dtype=bool))
        served = self._shown_to(image, client, key.label, key.index)
        visible, _ = on_screen(key.label, client, key.plane, served, known)
        if key.index not in visible:
            raise InvalidSubmission(
                f"there is no mask of {key.label} on slice {key.index} that could count as annotated: submit one"
            )
        return visible[key.index]

    def _own(self, image: str, client: str) -> dict[str, Served]:
        """Label -> what this very client was served."""
        served = self.log.served(image, client=client)
        return {label: record for label, record in served.items() if record.client == client}

    def _shown_to(self, image: str, client: str, label: str, index: int) -> Served | None:
        """What a client was served of a label; on a slice that it clicked on later without naming one, that mask."""
        own: Mapping[str, Served] = self._own(image, client)
        named, unnamed = own.get(label), own.get(UNNAMED)
        if unnamed is None:
            return named
        later = index in unnamed.prompted and (named is None or unnamed.when > named.when)
        return replace(unnamed, label=label) if later else named


def _plane(served: Served | None) -> Plane:
    return Plane(0 if served is None else served.axis)


def _visible(label: str, known: Annotations, served: Served | None, client: str, opened: str) -> frozenset[int]:
    """The slices of a label that were on a client's screen since it opened the image; none where all were empty."""
    sent = {} if served is None else {k: mask for k, mask in served.slices.items() if served.sent_at(k) > opened}
    own = {
        index: entry.mask
        for index, entry in known.annotated(label, plane=_plane(served)).items()
        if index in sent or (entry.client == client and entry.when > opened)
    }
    masks = {**sent, **own}
    return frozenset(masks) if any(not mask.empty for mask in masks.values()) else frozenset()


def _why_open(label: str, known: Annotations, visible: Mapping[str, frozenset[int]], served: Served | None) -> str:
    """Why a label cannot be finished; "" where it can."""
    slices, plane = visible.get(label, frozenset()), _plane(served)
    if not slices:
        return "it was not shown since you opened the image"
    # checked is a whole slice that shows it, in the plane that is finished
    entries = known.annotated(label, plane=plane).values()
    if not any(one.source is not Source.COMPLETE and one.known is None and not one.empty for one in entries):
        return "no slice that shows it was checked"
    if len(slices) < plane.count(known.grid):
        return "only some of its slices were shown; run fewshot or sam_3d, and look at the rest"
    return ""


_CHOOSE = "choose the label in the options of this model (for_label), or send it as 'label'"
