"""Studies in which a few annotated slices of an image count as such, in front of what keeps images and label files."""

from __future__ import annotations

import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ssmsam.annotation.annotations import (
    Annotations,
    InvalidSubmission,
    SliceAnnotation,
    SliceKey,
    SupportSet,
    Update,
    covered_voxels,
    label_map,
    now,
)
from ssmsam.annotation.interpretation import Submission, whole_label
from ssmsam.annotation.labels import new_labels, read_label_info
from ssmsam.annotation.log import Agreement, Assignment, Mark, Review, ReviewVerdict, Served, WorkSummary, agreement
from ssmsam.annotation.partial import write_partial
from ssmsam.annotation.service import AnnotationService, FinishedLabel, finished_labels, summarise
from ssmsam.annotation.store import Overview
from ssmsam.cache import KeyedLocks
from ssmsam.dicom.seg_check import NOTHING_COVERED, Covered
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.reading import read_grid, read_volume
from ssmsam.service.errors import InvalidRequest, NotKnown, NotNow, NotYours
from ssmsam.service.jobs import account
from ssmsam.service.waiting import Waiting, WaitingRoom
from ssmsam.volume.errors import named
from ssmsam.volume.geometry import STORED_SLICES, Plane, axis_codes
from ssmsam.volume.volume import Grid, Volume, reoriented
from ssmsam.volume.writing import write_volume

logger = logging.getLogger(__name__)

FINAL = "final"
REVISION = "revision"
"""The key of a label's info that says of which revision of the annotations it is."""
UNSENT = "unsent"
"""The tag of a final label that an archive did not take yet."""
DELIVER_S, LONGEST_S = 10.0, 60.0
"""How long it waits before it is tried again what an archive did not take, at first and at most: it waits twice as long
each time. A guess."""
PARTIAL = "partial"
"""The tag of what is annotated so far. ``final`` is for volumes that were declared finished."""
Info = dict[str, Any]
"""What is noted of a label, as JSON."""


@dataclass(frozen=True)
class Receipt:
    """What became of a submission."""

    update: Update
    annotations: Annotations
    known: tuple[str, ...] = ()
    """The labels that were offered or annotated before."""
    since: str = ""
    """When the client opened the image."""
    notes: tuple[str, ...] = ()
    """What the finished label's file cannot show, as sentences."""

    @property
    def tag(self) -> str:
        return FINAL if self.annotations.finished else PARTIAL

    @property
    def new_labels(self) -> list[str]:
        """The labels that were not known before, in any spelling."""
        return new_labels(self.update.labels, self.known)

    @property
    def new_label_lines(self) -> list[str]:
        """A line for each of them."""
        return [f"new label: {name}" for name in self.new_labels]

    def answer(self) -> dict[str, Any]:
        """As JSON for the client: first what a person reads, then what is known in all, for programs."""
        counted = [*summarise(self.update).splitlines(), *self.new_label_lines, *self.notes]
        return {
            "counted": counted,
            "detail": "; ".join(counted),
            "new_labels": self.new_labels,
            "tag": self.tag,
            "revision": self.annotations.revision,
            "partial": write_partial(self.annotations),
        }

    def finished(self) -> dict[str, FinishedLabel]:
        """What the labels hold that it declared finished."""
        return finished_labels(self.annotations, self.update.complete)


class StudyFiles(Protocol):
    """Where images and label files lie: a folder, or an archive of which a part is kept here.

    Ids of labels are those of their images. What is not there is :class:`~ssmsam.service.errors.NotKnown`, an empty
    text or an empty dictionary; what cannot be stored is StudiesNotWritable, InvalidRequest, or an error of the store.
    """

    remote: bool
    """Whether it is an archive: images are fetched when they are opened, and final labels go there, under names that
    have to be said. They are not sent again when they are there, and not removed from there."""
    writable: bool
    place: str
    """Where finished labels go, as people are told."""
    notices: list[str]
    """What the one who runs the server should know, as sentences without paths."""

    def name(self) -> str: ...
    def list_images(self) -> list[str]: ...
    def knows(self, image_id: str) -> bool: ...
    def get_image_uri(self, image_id: str) -> str: ...
    def get_labeled_images(self) -> list[str]: ...
    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]: ...
    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...
    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]: ...
    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Info, covered: Covered = NOTHING_COVERED
    ) -> str: ...
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None: ...
    def remove_label(self, label_id: str, label_tag: str) -> None: ...
    def remove_image(self, image_id: str) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def require_writable(self) -> None: ...


class AnnotatedStudies:
    """Images with what is annotated on their slices. Safe for threads.

    Labels with other tags than ``partial`` and ``final`` are files like any other. :meth:`mend_labels` has to be
    called once before anything else where label files can be written.

    Args:
        files: images and label files.
        root: the folder of the annotations.
        labels: what clients are offered, in their order.
    """

    def __init__(self, files: StudyFiles, root: Path, *, labels: Sequence[str] = ()) -> None:
        self.files = files
        self._service = AnnotationService(root, tuple(labels))
        self._service.go_on()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work-log")
        self._images_locked = KeyedLocks()
        """By image: submissions come one after the other, so that label files are never older than they."""
        self._waiting = WaitingRoom(root.with_name(f"{root.name}-waiting"))
        self._delivery = threading.Lock()
        self._delivers, self._due = False, False

    def bring(self, image_id: str, names: Sequence[str]) -> None:
        """Count the final label of an image, a file that was not made here, as annotated on all slices.

        ``names`` are the labels of its values from 1 where its info does not say. Nothing is changed where the image
        has annotations. Raises InvalidSubmission and UnreadableVolume, whose messages name no path.
        """
        with self._images_locked.hold(image_id):
            known = self._service.store.overview(image_id)
            if known.annotated or known.reopened:
                return
            grid, info = self.grid(image_id), self.files.get_label_info(image_id, FINAL) or {}
            mask = _read_mask(Path(self.files.get_label_uri(image_id, FINAL)), grid)
            update, values = whole_label(mask, grid, info.get("label_info"), names)
            merged = self._service.merge(image_id, update)
            if self.files.writable:
                self._keep_label(image_id, PARTIAL, merged, {})
                listed = [{"name": name, "idx": value} for name, value in values.items()]
                self.files.update_label_info(image_id, FINAL, {"label_info": listed})

    def mend_labels(self) -> None:
        """Write label files again that are not what is annotated: the server ended before it came to that, or the
        record of labels was lost."""
        for image_id, known in self._service.store.overviews().items():
            if not known.annotated or not (self.files.remote or image_id in self.files.list_images()):
                continue
            try:
                with self._images_locked.hold(image_id):
                    self._mend(image_id, known)
            except Exception:  # one bad image stops no server
                logger.exception("The labels of %s could not be written again", image_id)

    def _mend(self, image_id: str, known: Overview) -> None:
        partial, final = (self._own_label_info(image_id, tag) for tag in (PARTIAL, FINAL))
        stale = {PARTIAL: partial} if partial.get(REVISION) != known.revision else {}
        brought = "label_info" in final and REVISION not in final
        if not self.files.remote and known.finished and not brought and final.get(REVISION) != known.revision:
            stale[FINAL] = final
        annotations = self._service.store.load(image_id) if stale else None
        if annotations is not None:
            for tag, info in stale.items():
                logger.warning("The label %r of %s is not what is annotated: it is written again", tag, image_id)
                self._keep_label(image_id, tag, annotations, info)
        if not self.files.remote and not known.finished and final.get(REVISION):  # it was not declared finished in time
            self._drop_final(image_id)

    def _own_label_info(self, image_id: str, tag: str) -> dict[str, Any]:
        """What is noted of a label here; nothing where there is none."""
        if tag == FINAL and self.files.remote:
            return {}
        return dict(self.files.get_label_info(image_id, tag) or {})

    # --- what an archive could not take or send

    def deliver_later(self) -> None:
        """Try in the background, until it is done, what an archive could not take: submissions to images that it did
        not send, and final labels. Nothing happens where nothing waits."""
        with self._delivery:
            self._due = True
            if not self._delivers:
                self._delivers = True
                threading.Thread(target=self._deliver, name="delivery", daemon=True).start()

    def _deliver(self) -> None:
        pause = DELIVER_S
        while True:
            with self._delivery:
                if not self._due:
                    self._delivers = False
                    return
                self._due = False
            try:
                left = self.deliver()
            except Exception:
                logger.exception("What waits for the archive could not be tried again")
                left = 1
            if left:
                time.sleep(pause)
                pause, self._due = min(2 * pause, LONGEST_S), True

    def deliver(self) -> int:
        """Try once what waits; how much waits still."""
        left = 0
        for one in self._waiting.listed():
            try:
                self.grid(one.image)
            except (StoreUnavailable, StoreRefused):
                left += 1
                continue
            except Exception as error:
                self._set_aside(one, error)
                continue
            try:
                self.submit(one.image, one.mask, one.params, tag=one.tag)
                one.done()
            except (StoreUnavailable, StoreRefused):  # it is counted, and its final label is one of those below
                one.done()
            except Exception as error:
                self._set_aside(one, error)
        for image_id, known in self._service.store.overviews().items():
            if known.finished and (said := self._own_label_info(image_id, UNSENT)):
                try:
                    self._apply(image_id, Update, params=said)
                except Exception as error:
                    logger.info("The final label of %s is not in the archive yet: %s", image_id, error)
                    left += 1
        return left

    def _set_aside(self, one: Waiting, error: Exception) -> None:
        kept = one.put_aside()
        logger.error("A submission to %s that waited cannot be used, and is kept as %s: %s", one.image, kept, error)

    def _wait(self, image_id: str, file: Path, params: Mapping[str, Any], tag: str, error: Exception) -> Exception:
        """Keep a submission to an image that the archive does not send; the error that says so."""
        self.require_writable()
        if file.suffix != ".bin":
            with named(file, "the label"):
                read_volume(file)
        self._waiting.add(image_id, file, tag=tag, params=params)
        self.deliver_later()
        return type(error)(
            f"{error} What you submitted is kept on this server, and counted as soon as the archive sends the image: "
            "there is no need to submit it again."
        )

    # --- for the methods that learn from annotations

    def annotations(self, image_id: str) -> Annotations:
        """What is known of every label and slice of an image; without revisions where nothing was submitted."""
        return self._service.known(image_id, self.grid(image_id))

    def all_annotations(self) -> Iterator[tuple[str, Annotations]]:
        """What is known of every image that there is and that has annotations."""
        images = set(self.files.list_images())
        for image_id, known in sorted(self._service.store.overviews().items()):
            annotations = self._service.store.load(image_id) if image_id in images and known.annotated else None
            if annotations is not None:
                yield image_id, annotations

    def annotated_by(
        self, client: str, image_id: str, label: str, *, grid: Grid, plane: Plane = STORED_SLICES
    ) -> dict[int, SliceAnnotation]:
        """The slices of a label that a client annotated itself, as a whole. ``grid`` is the image's."""
        known = self._service.known(image_id, grid).annotated(label, plane=plane)
        return {index: entry for index, entry in known.items() if entry.client == client and entry.known is None}

    def support(self) -> SupportSet:
        """Every annotated slice of every image that there is."""
        images = set(self.files.list_images())
        return SupportSet(tuple(item for item in self._service.store.support() if item.image in images))

    def one_look(self) -> AbstractContextManager[None]:
        """In this block it is looked up once which labels are annotated and finished on which images."""
        return self._service.store.one_look()

    def annotated_labels(self) -> list[str]:
        """The labels of :meth:`support`, sorted. Reads no mask: viewers ask for them every few seconds."""
        images = set(self.files.list_images())
        known = self._service.store.overviews().items()
        return sorted({label for image, one in known if image in images for label in one.annotated})

    # --- what the server did, so that submissions can be compared with it

    def serve(
        self,
        image_id: str,
        mask: np.ndarray | Mapping[int, np.ndarray],
        *,
        label: str,
        client: str,
        plane: Plane = STORED_SLICES,
        prompted: Iterable[int] = (),
        when: str = "",
    ) -> None:
        """Remember a mask (slices, rows, columns) of one label that a client was sent, or the slices of it that it was
        sent. It is written in the background.

        ``prompted`` are the slices it clicked on. Give the masks of one answer with many labels the same ``when``.
        """
        served = Served.of(mask, label=label, client=client, plane=plane, prompted=prompted, when=when or now())
        # nobody waits for the disk between two clicks
        self._writer.submit(self._note, self._service.log.serve, image_id, served, who=person(client))

    def screen(self, image_id: str, *, client: str) -> dict[str, np.ndarray]:
        """Label -> mask (slices, rows, columns) bool of what a client was sent, as it is on its screen.

        The label is "" for what it asked for without one.
        """
        grid = self.grid(image_id)
        self._written()
        return self._service.screen(image_id, grid, client=client)

    def assign(
        self, image_id: str, slices: Sequence[int], *, axis: int = 0, labels: Sequence[str] = (), client: str = ""
    ) -> Assignment:
        """Remember slices that a client was asked to annotate. ``axis`` is the array's."""
        when = now()
        name = f"{when}-{len(self._service.log.assignments(image_id))}"
        assignment = Assignment(name, image_id, tuple(map(int, slices)), axis, tuple(labels), client, when)
        self._service.log.assign(assignment)
        return assignment

    # --- what clients do

    def submit(self, image_id: str, file: Path, params: Mapping[str, Any], *, tag: str = PARTIAL) -> Receipt:
        """Merge a submitted mask into what is known. ``params`` as clients send them: ``label_info``, ``partial``, ...

        The tag ``final`` declares its labels finished unless ``partial`` says otherwise.

        An archive needs names for the labels: by order they could get another organ's, and take it there.
        Raises InvalidSubmission, UnreadableVolume and InvalidRequest; nothing is changed then.
        """
        if tag == FINAL:
            params = {"partial": {"complete": True}, **params}
        if self.files.remote:
            params = {**params, "label_info": required_names(params)}
        try:
            grid = self.grid(image_id)
        except (StoreUnavailable, StoreRefused) as error:
            raise self._wait(image_id, file, params, tag, error) from error
        submission = Submission(_read_mask(file, grid), params)
        with self._images_locked.hold(image_id):

            def read(grid: Grid) -> Update:
                return self._service.submitted(image_id, submission, grid)

            receipt = self._apply(image_id, read, client=submission.client, params=params, grid=grid)
            shown = self._service.on_screen(image_id, submission)
            self._writer.submit(self._note, self._service.log.serve, image_id, *shown)
        return receipt

    def submit_slice(self, image_id: str, key: SliceKey, mask: np.ndarray, *, client: str = "") -> Receipt:
        """Count one label on one slice as it was drawn: ``mask`` (height, width) bool, without any voxel where the
        label is not on the slice. It counts as what the client has on screen. Raises InvalidSubmission."""
        receipt = self._apply(
            image_id, lambda grid: self._service.drawn(image_id, key, mask, grid, client=client), client=client
        )
        (known, entry), *_ = receipt.update.entries.items()
        shown = Served(known.label, client, known.axis, {known.index: entry.mask}, when=entry.when)
        self._writer.submit(self._note, self._service.log.serve, image_id, shown)
        return receipt

    def change(self, image_id: str, partial: Any, *, client: str = "") -> Receipt:
        """Apply ``partial`` without a mask: withdraw slices, reopen, accept what is on screen, declare complete."""
        return self._apply(
            image_id, lambda grid: self._service.changed(image_id, partial, grid, client=client), client=client
        )

    def mark(self, image_id: str, mark: Mark) -> Receipt:
        """Count one slice as annotated, by a client's verdict on what it has on screen."""
        return self._apply(image_id, lambda grid: self._service.marked(image_id, mark, grid), client=mark.client)

    def finish(self, image_id: str, *, client: str = "", labels: Collection[str] = ()) -> Receipt:
        """Declare labels finished as the client sees them: those that it was shown since it opened the image and of
        which a slice was checked, of ``labels`` or of all. Raises InvalidSubmission where there are none."""
        return self._apply(
            image_id, lambda grid: self._service.finished(image_id, grid, client=client, labels=labels), client=client
        )

    def finishing(self, image_id: str, *, client: str = "", labels: Collection[str] = ()) -> Receipt:
        """What :meth:`finish` would do. Nothing is changed."""
        with self._images_locked.hold(image_id):
            self._written()
            grid = self.grid(image_id)
            update = self._service.finished(image_id, grid, client=client, labels=labels)
            merged = self._service.known(image_id, grid).merge(update)
            return Receipt(update, merged, since=self._service.log.opened(image_id, client))

    def undo(self, image_id: str, *, client: str = "") -> Receipt:
        """Take back what a client did last to an image. Raises InvalidSubmission where nothing is left."""
        return self._apply(
            image_id, lambda grid: self._service.known(image_id, grid).taken_back(client, when=now()), client=client
        )

    # --- what a second person says, and what is known of the work

    def states(self) -> dict[str, str]:
        """Image -> ``new``, ``in work``, ``to review`` or ``finished``."""
        known, finished = self._service.store.overviews(), set(self.get_labeled_images())

        def state(image: str) -> str:
            found = known.get(image, Overview())
            if image not in finished:
                return "in work" if found.annotated else "new"
            open_to_review = found.finished and found.by_people  # not what was brought along
            return "finished" if not open_to_review or self.work(image).accepted(found.revision) else "to review"

        return {image: state(image) for image in self.files.list_images()}

    def work(self, image_id: str) -> WorkSummary:
        """Who worked on an image, the last review, and the Dice that is expected of its labels."""
        return self._service.log.summary(image_id)

    def review(self, image_id: str, verdict: ReviewVerdict, *, note: str = "", client: str = "") -> Review:
        """Accept a finished volume, or open it again.

        Raises NotNow where it is not finished or reviewed already, NotYours where people log in and it is the
        reviewer's own work, and InvalidRequest where it is sent back without a note.
        """
        self.require_writable()
        self._written()
        if verdict is ReviewVerdict.SEND_BACK and not note:
            raise InvalidRequest("a volume is sent back with a note that says what to change")
        state, who = self.states()[image_id], person(client)
        if state != "to review":
            raise NotNow(f"{image_id} is {state}: what can be reviewed is what was finished here and not accepted yet")
        if account() and (mine := self.work(image_id).workers.get(who)) and mine.annotated:
            raise NotYours(f"{who} annotated {image_id}: a second person has to review it")
        given = Review(verdict, who, now(), self._service.store.overview(image_id).revision, note)
        if verdict is ReviewVerdict.SEND_BACK:
            self._apply(image_id, lambda grid: self._service.changed(image_id, {"reopen": True}, grid, client=client))
        self._service.log.review(image_id, given)
        return given

    def agreement(self, image_id: str) -> list[Agreement]:
        """How far those agree who annotated the same slices."""
        return agreement(self.annotations(image_id))

    def expect(self, image_id: str, dice: Mapping[str, float]) -> None:
        """Note the Dice in [0, 1] that is expected of labels where nobody annotated, in the background."""
        self._writer.submit(self._note, self._service.log.expect, image_id, dict(dice))

    def opened(self, image_id: str, *, client: str = "") -> None:
        """Note that a client opened an image: its screen shows nothing of it yet. It is written in the background."""
        self._writer.submit(self._note, self._service.opened, image_id, client=client, who=person(client))

    def label_names(self, image_id: str) -> tuple[str, ...]:
        """Every label that is known by now: offered, annotated on any image, or drawn on this one."""
        return self._service.names(image_id)

    def show_again(self, image_id: str, *, client: str, order: Sequence[str]) -> tuple[Volume, dict[str, int]]:
        """All masks of an image as this client has them or would get them: annotated slices, else what it was sent
        last. A label map (slices, rows, columns), and which value means which label; ``order`` names the first ones.
        It counts as shown.
        """
        grid = self.grid(image_id)
        self._written()
        known, screen = self.annotations(image_id), self._service.screen(image_id, grid, client=client)
        for label in {key.label for key in known.slices} - screen.keys():
            screen[label] = known.target(label)[0]
        labels = [label for label in dict.fromkeys((*order, *sorted(screen))) if label in screen and label]
        values = {label: order.index(label) + 1 if label in order else 0 for label in labels}
        free = itertools.count(len(order) + 1)
        values = {label: value or next(free) for label, value in values.items()}
        array = np.zeros(grid.shape, np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
        for label in sorted(labels, key=lambda one: -int(screen[one].sum())):  # what lies inside another stays visible
            array[screen[label]] = values[label]
        self._service.shown_again(image_id, array, values, known, client=client)
        return Volume(array, grid.affine), values

    def forget(self, image_id: str) -> None:
        """Remove all that is known of an image's slices, and what was noted of the work on it. ``final`` stays."""
        self.require_writable()
        with self._images_locked.hold(image_id):
            self._written()
            self._service.forget(image_id)
            if PARTIAL in self.files.get_labels_by_image_id(image_id):
                self.files.remove_label(image_id, PARTIAL)

    def clicked_label(self, image_id: str, *, client: str, axis: int, index: int, yx: tuple[int, int] | None) -> str:
        """Which label a click on a slice means when the client does not say. Raises InvalidSubmission."""
        grid = self.grid(image_id)
        self._written()
        return self._service.clicked_label(image_id, grid, client=client, axis=axis, index=index, yx=yx)

    # --- label files and images

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label. ``partial`` and ``final`` are submissions, see :meth:`submit`."""
        if label_tag not in (PARTIAL, FINAL):
            return self.files.save_label(image_id, label_filename, label_tag, label_info)
        self.submit(image_id, Path(label_filename), label_info or {}, tag=label_tag)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Without ``final`` a volume is open again; without ``partial`` nothing is known of it but its ``final``.

        Raises InvalidRequest for a final label that an archive has and nobody declared here.
        """
        if label_tag == FINAL and self._service.store.overview(label_id).finished:
            self.change(label_id, {"reopen": True})
            return
        if label_tag == FINAL and self.files.remote:
            raise InvalidRequest(f"this final label is a DICOM SEG in {self.files.name()}: remove its series there")
        if label_tag == PARTIAL:
            self.forget(label_id)
            return
        with self._images_locked.hold(label_id):
            self.files.remove_label(label_id, label_tag)

    def remove_image(self, image_id: str) -> None:
        if not self.files.remote:  # an archive refuses
            self.forget(image_id)
        self.files.remove_image(image_id)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The finished images: those declared so, and those whose final label was not made here."""
        final, states = set(self.files.get_labeled_images()), self._service.store.overviews()
        judged = {image: state.finished for image, state in states.items() if state.annotated or state.reopened}
        return [image for image in self.files.list_images() if judged.get(image, image in final)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The images that are not finished, with or without annotated slices."""
        finished = set(self.get_labeled_images(label_tag, labels))
        return [image for image in self.files.list_images() if image not in finished]

    def status(self) -> dict[str, Any]:
        """As viewers read it: ``completed`` counts images to learn from, and more than 0 allows training.

        ``finished`` and ``partial`` say how many of them are finished, and how many are not.
        """
        status = self.files.status()
        if status.get("trouble"):  # a store that does not answer cannot be asked for its images
            return {**status, "finished": 0, "partial": 0}
        try:
            finished = set(self.get_labeled_images())
        except (StoreUnavailable, StoreRefused):
            return status
        states = self._service.store.overviews()
        begun = {image for image in self.files.list_images() if image in states and states[image].annotated}
        counts = {"completed": len(finished | begun), "finished": len(finished), "partial": len(begun - finished)}
        return {**status, **counts}

    # --- inside

    def require_writable(self) -> None:
        """Raises StudiesNotWritable where nothing can be stored."""
        self.files.require_writable()

    def _apply(
        self,
        image_id: str,
        read: Callable[[Grid], Update],
        *,
        client: str | None = None,
        params: Mapping[str, Any] | None = None,
        grid: Grid | None = None,
    ) -> Receipt:
        """Merge what ``read`` finds, given the image's grid, keep the label files in step, and note that a ``client``
        did it.

        Where a store of final labels does not take one, it counts as finished all the same and is sent later; the error
        of the store is raised.
        """
        self.require_writable()
        params, grid = params or {}, grid or self.grid(image_id)
        with self._images_locked.hold(image_id):
            self._written()
            names, before, update = self._service.annotated_names, self._service.store.load(image_id), read(grid)
            merged = self._service.merge(image_id, replace(update, complete=frozenset()))
            declared = Update(merged.grid, complete=update.complete, client=update.client, when=update.when)
            finished = merged.merge(declared)
            written = self._own_label_info(image_id, PARTIAL).get(REVISION)  # another one where the disk was full
            changed = before is None or finished.revision > before.revision or written != before.revision
            late: Exception | None = None
            notes: tuple[str, ...] = ()
            try:
                if finished.finished and (changed or self._own_label_info(image_id, UNSENT)):
                    late, notes = self._keep_final(image_id, finished, params)
                elif changed and before is not None and before.finished:
                    self._drop_final(image_id)
                merged = self._service.merge(image_id, declared)
            finally:
                if changed:
                    self._keep_label(image_id, PARTIAL, merged, params)
            if late:
                self.deliver_later()
                raise late
            if client is not None:
                self._note(self._service.log.worked, image_id, person(client), now())
            return Receipt(update, merged, names, notes=notes)

    def _keep_final(
        self, image_id: str, finished: Annotations, params: Mapping[str, Any]
    ) -> tuple[Exception | None, tuple[str, ...]]:
        """Keep a final label; the error of a store that did not take it, where it is kept here instead, and notes."""
        try:
            return None, self._keep_label(image_id, FINAL, finished, params)
        except (StoreUnavailable, StoreRefused) as error:
            if self._own_label_info(image_id, UNSENT).get(REVISION) != finished.revision:
                raise
            return error, ()

    def _note(self, write: Callable[..., None], *arguments: Any, **more: Any) -> None:
        try:
            write(*arguments, **more)
        except Exception:  # a click was answered already; a damaged record is refused when it is read
            logger.exception("What a client was shown could not be noted")

    def _written(self) -> None:
        """Wait until everything that was served is noted."""
        self._writer.submit(int).result()

    def _keep_label(
        self, image_id: str, tag: str, annotations: Annotations, params: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Write what is annotated as a label file with its names; notes of what it cannot show."""
        array, values = label_map(annotations, order=self._service.labels)
        if not values:
            stale = (FINAL, UNSENT) if tag == FINAL else (tag,)
            known = stale if self.files.remote else self.files.get_labels_by_image_id(image_id)  # it may be down
            for one in stale:
                if one in known:
                    self.files.remove_label(image_id, one)
            return ()
        covered = covered_voxels(annotations, array, values)
        notes = _overlaps(covered, kept=tag == FINAL and self.files.remote)
        info = {
            **params,
            "label_info": [{"name": name, "idx": value} for name, value in values.items()],
            "partial": write_partial(annotations),
            REVISION: annotations.revision,
            **({"notes": list(notes)} if notes else {}),
        }
        with tempfile.TemporaryDirectory(prefix="ssmsam-") as folder:
            file = Path(folder) / "label.nii.gz"
            write_volume(Volume(array, annotations.grid.affine), file)
            self.files.save_label(image_id, str(file), tag, info, covered)
        return notes

    def _drop_final(self, image_id: str) -> None:
        try:
            self.files.remove_label(image_id, FINAL)
        except InvalidRequest as error:  # an archive keeps what it has; the next final label will be the newer one
            logger.info("The final label of a volume that is open again stays where it is: %s", error)

    def grid(self, image_id: str) -> Grid:
        """Of an image that an archive does not send, as it was when it was annotated. Raises UnreadableVolume, whose
        message names the image, not its path."""
        try:
            uri = self.files.get_image_uri(image_id)
        except (StoreUnavailable, StoreRefused):
            known = self._service.store.load(image_id)
            if known is None:
                raise
            return known.grid
        if not uri or not Path(uri).exists():
            raise NotKnown("image", image_id, step="its file was removed from the datastore")
        with named(Path(uri), image_id):
            return read_grid(uri)


def _overlaps(covered: Covered, *, kept: bool) -> tuple[str, ...]:
    named = ", ".join(f"{int(area.sum())} of {label}" for label, area in covered.items())
    say = f"labels overlap, and a label file holds one a voxel: the one drawn later covers voxels of others ({named})"
    where = "the DICOM SEG holds all of them" if kept else "they are kept, and an export as DICOM SEG holds them"
    return (f"{say}; {where}",) if covered else ()


def person(client: str) -> str:
    """Who acts: the account where people log in, for that is proved, else the client."""
    return account() or client


def required_names(info: Mapping[str, Any]) -> Any:
    """What a viewer sent as ``label_info``, or the names among the details of an inference. Raises InvalidRequest."""
    details = info.get("params")
    given = info.get("label_info") or (details.get("label_names") if isinstance(details, dict) else None)
    if not given or not read_label_info(given):
        raise InvalidRequest(
            "nothing says which label the values of the mask are, and an archive must not get another organ's name: "
            'send params with {"label_info": [{"name": "liver", "idx": 1}, ...]}'
        )
    return given


def _read_mask(file: Path, grid: Grid) -> Volume:
    """A submitted mask: a volume, or raw bytes (.bin). Axes that a viewer flipped or swapped are put back."""
    if file.suffix == ".bin":
        return raw_mask(file, grid)
    with named(file, "the label"):
        return turned_to(read_volume(file), grid)


def raw_mask(file: Path, grid: Grid) -> Volume:
    """A mask of one byte for each voxel of the image's grid, the column running fastest, as OHIF 2 sends it. Raises
    InvalidSubmission."""
    voxels = np.fromfile(file, dtype=np.uint8)
    if voxels.size != np.prod(grid.shape):
        raise InvalidSubmission(
            f"the label has {voxels.size} bytes, but the image has {np.prod(grid.shape)} voxels: "
            "send one byte per voxel, or a .nii.gz or .nrrd file"
        )
    return Volume(voxels.reshape(grid.shape), grid.affine)


def turned_to(mask: Volume, grid: Grid) -> Volume:
    """The mask with its axes as the grid has them, where that makes it fit; else as it is."""
    if mask.grid.matches(grid):
        return mask
    turned = reoriented(mask, axis_codes(grid))
    return turned if turned.grid.matches(grid) else mask
