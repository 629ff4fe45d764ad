"""What the automatic models share: what is annotated, the checkpoints that were made of it, what adapts beside, and the
answers that are kept while nothing changes."""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.annotation.annotations import OtherImage, SupportSlice
from ssmsam.cache import Cache, KeyedLocks, SingleFlight
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, Initialisations, UnknownCheckpoint
from ssmsam.fewshot.config import LEAST_SLICES, FewShotConfig
from ssmsam.fewshot.pipeline import adapt, with_pseudo_labels, with_support_again
from ssmsam.fewshot.support import LabelledSlice, NothingToLearn, Support, digest
from ssmsam.fewshot.task_checkpoint import FEWSHOT, UnusableCheckpoint, read_card
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.ops import evenly_spaced
from ssmsam.progress import FairLock, Progress, silent
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.background import Background
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import UNUSABLE, Images
from ssmsam.service.jobs import Job, Jobs
from ssmsam.volume.geometry import Plane

ADAPT, SEGMENT = "adapt", "segment"
"""Kinds of jobs."""
_HEADS_IN_MEMORY = 2
"""A guess: the task checkpoint that answers and the one before it, 22 MB each."""
MEMORY_BYTES = 64 * 2**20
"""A guess: hundreds of packed answers."""


@dataclass(frozen=True)
class Limits:
    """How many slices of a label are learned from: adaptation takes time with every slice."""

    own: int = 24
    others: int = 24


@dataclass(frozen=True)
class LabelledSlices:
    """The annotated slices of all images, opened: the support that few-shot methods learn from."""

    images: Images
    studies: AnnotatedStudies

    def support(
        self, image_id: str, *, labels: Collection[str] = (), only_this: bool = False, limits: Limits | None = None
    ) -> Support:
        """Label -> slices: those of ``image_id`` and, unless ``only_this``, those of other images.

        Labels that are annotated on no slice that shows them are left out, and so are other images that cannot be
        read. Raises InvalidRequest for ``labels`` that are not annotated anywhere, and where no image that shows one
        of them can be read.
        """
        limits = limits or Limits()
        known = self.studies.support()
        if only_this:
            known = known.only(images=[image_id])
        wanted = [label for label in known.labels if len(known.only(label=label, nonempty=True))]
        missing = sorted(set(labels) - set(wanted))
        if missing:
            annotated = ", ".join(wanted) or "none yet"
            raise InvalidRequest(
                f"no annotated slice shows {', '.join(missing)}; annotated labels: {annotated}. "
                "Annotate a few slices of it, submit them, and run again"
            )
        opened: dict[tuple[str, Plane], VolumeEmbeddings] = {}
        found = {}
        for label in wanted:
            if not labels or label in labels:
                everything = known.only(label=label)
                own = [one for one in everything if one.image == image_id]
                others = [one for one in everything if one.image != image_id]
                chosen = _spread(own, limits.own) + _spread(others, limits.others)
                slices = self._opened(chosen, image_id, opened)
                if any(one.mask.any() for one in slices):
                    found[label] = slices
        if labels and not found:
            raise InvalidRequest(
                f"the images that show {', '.join(sorted(labels))} cannot be read; GET /info/ says why. "
                "Annotate a few slices of it in another image, submit them, and run again"
            )
        return found

    def these(self, slices: Mapping[str, Iterable[Mapping[str, object]]]) -> Support:
        """Label -> the slices that a card lists, as they are annotated now; without those that cannot be opened."""
        known = self.studies.support()
        opened: dict[tuple[str, Plane], VolumeEmbeddings] = {}
        found = {}
        for label, several in slices.items():
            wanted = {(one.get("image"), one.get("axis"), one.get("slice")) for one in several}
            chosen = [one for one in known.only(label=label) if (one.image, one.plane.axis, one.index) in wanted]
            found[label] = self._opened(chosen, "", opened)
        return found

    def showing(self) -> Counter[tuple[str, str]]:
        """(image, label) -> how many annotated slices show it. Opens nothing."""
        return Counter((one.image, one.label) for one in self.studies.support().only(nonempty=True))

    def _opened(
        self, slices: Iterable[SupportSlice], image_id: str, opened: dict[tuple[str, Plane], VolumeEmbeddings]
    ) -> list[LabelledSlice]:
        found = []
        for one in slices:
            key = one.image, one.plane
            try:
                if key not in opened:
                    opened[key] = self.images.embeddings(one.image, plane=one.plane)
                if not opened[key].grid.matches(one.grid):
                    raise OtherImage(one.image, one.grid, opened[key].grid)
            except UNUSABLE:  # its image was removed or cannot be read: nothing can be learned from it now
                if one.image == image_id:
                    raise
                continue
            known = None if one.annotation.known is None else one.annotation.known.array
            found.append(LabelledSlice(opened[key], one.index, one.mask, known, one.image))
        return found


def _spread(slices: list[SupportSlice], most: int) -> list[SupportSlice]:
    """At most so many of the slices, spread evenly, those that show the label first."""
    showing = [one for one in slices if not one.annotation.empty]
    empty = [one for one in slices if one.annotation.empty]
    kept = [showing[n] for n in evenly_spaced(len(showing), most)]
    return kept + [empty[n] for n in evenly_spaced(len(empty), most - len(kept))]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a task checkpoint says of an image, small enough to be kept.

    Of each label ``uncertain`` slices are named, the worst first, and ``asked``: slices just past its annotated ends,
    of which it is asked whether it is still there; ``expected`` is the Dice in [0, 1] that is expected of it on slices
    that nobody annotated, in all, and ``slice_dice`` that on each of them that has a mask.
    """

    labels: tuple[str, ...]
    packed: bytes
    """The mask, see :meth:`pack`."""
    shape: tuple[int, ...]
    uncertain: Mapping[str, list[int]]
    asked: Mapping[str, list[int]]
    expected: Mapping[str, float]
    slice_dice: Mapping[str, Mapping[int, float]]

    @staticmethod
    def pack(mask: np.ndarray) -> bytes:
        """Masks are mostly background and shrink hundredfold, at any level of compression."""
        return zlib.compress(np.ascontiguousarray(mask, dtype=np.uint8).tobytes(), 1)

    @property
    def mask(self) -> np.ndarray:
        """(slices, rows, columns) uint8 with 1, 2, ... for the labels."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)


def answer_cache() -> Cache[Hashable, Answer]:
    """For the answers that were given last. The key has to hold everything that they depend on."""
    return Cache(MEMORY_BYTES, size=lambda answer: len(answer.packed), keep_newest=True)


@dataclass(frozen=True, kw_only=True)
class FewShotService:
    """What the tasks of one method work with that learn from annotated slices."""

    method: str = FEWSHOT
    images: Images
    studies: AnnotatedStudies
    embedder: Embedder
    decoder: TargetDecoder
    """As it came with the encoder's weights."""
    initialisations: Initialisations | None = None
    """Other decoders to adapt from; None where the method has no others."""
    background: Background
    registry: CheckpointRegistry
    labels: tuple[str, ...]
    """What viewers are offered, in their order."""
    config: FewShotConfig = field(default_factory=FewShotConfig)
    jobs: Jobs = field(default_factory=Jobs)
    answers: Cache[Hashable, Answer] = field(default_factory=answer_cache)
    adapting: FairLock = field(default_factory=FairLock)
    """One at a time adapts the decoder: tens of seconds, on all threads of the machine."""
    publishing: threading.Lock = field(default_factory=threading.Lock)
    """One at a time looks which task checkpoints there are and puts one beside them. Nothing is computed meanwhile."""
    _prompting: SingleFlight[Hashable, tuple[AdaptedTask, str]] = field(default_factory=SingleFlight)
    """Task checkpoints that are being made of a support and a start, without gradient steps."""
    _completing: KeyedLocks = field(default_factory=KeyedLocks)
    """By the names of task checkpoints: one at a time completes labelled volumes for it."""
    _others: dict[str, None] = field(default_factory=dict)
    """Labels that were annotated under names of their own, in the order in which they were seen."""
    _read: Cache[tuple[str, int], AdaptedTask] = field(default_factory=lambda: Cache(_HEADS_IN_MEMORY))
    """Task checkpoints that were read lately, by name and the time of their file."""

    @property
    def labelled(self) -> LabelledSlices:
        """The annotated slices of all images."""
        return LabelledSlices(self.images, self.studies)

    @property
    def offered(self) -> list[str]:
        """The labels of viewers, and those that were annotated under other names.

        A label keeps its place: viewers that asked earlier would take a number for another organ's.
        """
        known: Iterable[str] = ()
        with suppress(StoreUnavailable, StoreRefused):  # viewers have to hear that the archive is down
            known = self.studies.annotated_labels()
        self._others.update(dict.fromkeys(label for label in known if label not in self.labels))
        return [*self.labels, *self._others]

    @property
    def status(self) -> dict[str, Any]:
        """What runs now and which task checkpoint answers, as JSON; and the start, where there is more than one."""
        running = [job.step for job in self.jobs.active(model=self.method) if job.state == "running"]
        found = {"adapting": running[0] if running else {}, "head": vars(self.registry.state)}
        return found if self.initialisations is None else {**found, "start": self.initialisations.state.active}

    @property
    def start(self) -> tuple[TargetDecoder, str]:
        """The decoder from which checkpoints are adapted, and its name, "" for the one that came with the weights."""
        return (self.decoder, "") if self.initialisations is None else self.initialisations.current()

    def task(
        self,
        support: Support,
        config: FewShotConfig,
        *,
        volume: str = "",
        wait: bool = True,
        progress: Progress = silent,
    ) -> tuple[AdaptedTask, str, bool]:
        """The task checkpoint for this support, its name, and whether it was adapted just now.

        Without ``wait`` for an adaptation it is the best that there is, or the decoder prompted by the labelled slices.
        It is ready to segment a ``volume``, any by default: labelled volumes get pseudo-labels when that is first
        needed."""
        adapts = config.adaptation.steps > 0
        if wait and adapts:
            progress("wait", 0, 0)
            with self.adapting:
                task, name, fresh = self._adapted(support, config, progress)
        else:
            task, name, fresh = *self._prompted(support, config, either=adapts, progress=progress), False
        return self._completed(task, name, support, lambda one: one.lacks(volume), progress), name, fresh

    def adapt_beside(self, job: Job, read: Callable[[], Support], config: FewShotConfig) -> str:
        """The work of a job: adapt to what ``read`` finds annotated now. The new one answers from the next run on if it
        is estimated to be better on slices held out. The name of the task checkpoint that answers."""
        support = read()
        job.subject = self.subject(support, config)
        with self.adapting:
            task, name, _ = self._adapted(support, config, job.progress)
        job.detail = judgement(task.card)
        return name

    def subject(self, support: Support, config: FewShotConfig) -> object:
        """Equal exactly for adaptations that would do the same."""
        return digest(support), self.start[1], config.adaptation

    def worth_adapting(self, support: Support, config: FewShotConfig, name: str) -> bool:
        """Whether it is open if adaptation helps: nothing was estimated for this checkpoint, and something can be."""
        if config.adaptation.steps == 0 or config.folds < 2 or self.registry.state.pinned:
            return False
        able = any(sum(one.drawn.any() for one in slices) >= LEAST_SLICES for slices in support.values())
        return able and not _judged(self.registry.card(name)) and self._at_hand(support, _judged) is None

    def _adapted(self, support: Support, config: FewShotConfig, progress: Progress) -> tuple[AdaptedTask, str, bool]:
        """The task checkpoint that was judged by an estimate, or is judged now."""
        found = self._pinned() or self._at_hand(support, _judged)
        if found:
            return *found, False
        decoder, start = self.start
        made = adapt(support, self.embedder, decoder, pseudo_labels=False, config=config, progress=progress)
        made = self.signed(made, start)
        with self.publishing:
            plain = self._at_hand(support, lambda card: not _judged(card))
            if plain is None:
                return made, self.registry.publish(made, decoder=self.decoder), bool(made.card["adapted"])
            if not made.card["adapted"]:  # the checkpoint that there is knows now that it is best
                told = {key: made.card[key] for key in ("settings", "dice_estimate")}
                kept = replace(plain[0], card={**plain[0].card, **told})
                self.registry.replace(plain[1], kept, decoder=self.decoder)
                return kept, plain[1], False
            name, known = self.registry.publish(made, decoder=self.decoder), plain[0].pseudo_labelled

        def lacking(one: AdaptedTask) -> list[str]:
            return [label for label in known if label not in one.pseudo_labelled]

        return self._completed(made, name, support, lacking, progress), name, True

    def _prompted(
        self, support: Support, config: FewShotConfig, *, either: bool, progress: Progress
    ) -> tuple[AdaptedTask, str]:
        """A task checkpoint with the decoder as it is, or ``either`` that or an adapted one, whichever is at hand."""
        found = self._pinned() or self._at_hand(support, lambda card: either or not card.get("adapted"))
        if found:
            return found
        key = digest(support), self.start[1]
        return self._prompting.run(key, lambda: self._plain(support, config, progress))

    def _plain(self, support: Support, config: FewShotConfig, progress: Progress) -> tuple[AdaptedTask, str]:
        """The task checkpoint that was made of this support without gradient steps, or is made now."""
        found = self._at_hand(support, lambda card: not card.get("adapted"))
        if found:
            return found
        decoder, start = self.start
        views = replace(config.adaptation.views, views=0)
        config = replace(config, adaptation=replace(config.adaptation, steps=0, views=views), folds=0)
        with self.jobs.turns.long(progress):
            task = adapt(support, self.embedder, decoder, pseudo_labels=False, config=config, progress=progress)
        task = self.signed(task, start)
        with self.publishing:
            return task, self.registry.publish(task, decoder=self.decoder)

    def _pinned(self) -> tuple[AdaptedTask, str] | None:
        state = self.registry.state
        kept = self.kept(state.active) if state.active and state.pinned else None
        return None if kept is None else (kept, state.active)

    def _at_hand(self, support: Support, fits: Callable[[Mapping[str, Any]], bool]) -> tuple[AdaptedTask, str] | None:
        """The one of this support and start that answers now or, of those in the registry, the newest, which answers
        from now on."""
        wanted, start = digest(support), self.start[1]
        active, cards = self.registry.state.active, self.registry.cards()
        for name in sorted(cards, key=lambda one: (one == active, one), reverse=True):
            card = cards[name]
            same = card.get("support_digest") == wanted and card.get("start", "") == start
            if same and fits(card) and (name == active or not card.get("trained")):
                kept = self.kept(name)
                if kept is not None:
                    if name != active:
                        self.registry.activate(name, pin=False)
                    return kept, name
        return None

    def _completed(
        self,
        task: AdaptedTask,
        name: str,
        support: Support,
        lacking: Callable[[AdaptedTask], Collection[str]],
        progress: Progress = silent,
    ) -> AdaptedTask:
        """The same task checkpoint for volumes without annotated slices of the labels that are ``lacking``, kept so."""
        if not lacking(task):
            return task
        with self._completing.hold(name):
            task = self.kept(name) or task  # another request may just have done so
            labels = lacking(task)
            if labels:
                with self.jobs.turns.long(progress):
                    task = with_pseudo_labels(task, support, labels=labels, config=self.config, progress=progress)
                self.registry.replace(name, task, decoder=self.decoder)
        return task

    def whole(self, name: str, *, owner: str = "") -> Path:
        """The file of a task checkpoint, lacking nothing for other servers. ``owner`` is the job's.

        Raises UnknownCheckpoint, UnusableCheckpoint for what must not leave or is damaged, and Cancelled.
        """
        path, task = self.registry.path(name), self.kept(name)
        read_card(path)
        if task is not None and task.lacks(""):
            title = f"{self.method}: labelled volumes are completed"
            job = Job(ADAPT, title=title, model=self.method, owner=owner)
            with self.jobs.running(job):
                self._completed(task, name, self.labelled.support(""), lambda one: one.lacks(""), job.progress)
        return path

    def take(self, data: bytes, name: str) -> str:
        """Put an exported task checkpoint beside the others; it does not answer yet. Raises UnusableCheckpoint and
        ValueError."""
        return self.registry.add_file(data, name, self.decoder, weights_sha256=self.embedder.encoder.weights_sha256)

    def signed(self, task: AdaptedTask, start: str) -> AdaptedTask:
        """The same with a card that says the method and the start."""
        return replace(task, card={**task.card, "method": self.method, "start": start})

    def kept(self, name: str) -> AdaptedTask | None:
        """The checkpoint of that name; None where it cannot be used with these weights, so that another is adapted."""
        try:
            key = name, self.registry.path(name).stat().st_mtime_ns
            return self._read.recalled(key, lambda: self._loaded(name))
        except (UnusableCheckpoint, UnknownCheckpoint, FileNotFoundError):
            return None

    def _loaded(self, name: str) -> AdaptedTask:
        task = self.registry.load(name, self.decoder, weights_sha256=self.embedder.encoder.weights_sha256)
        return self._shown_again(name, task) if task.summarised else task

    def _shown_again(self, name: str, task: AdaptedTask) -> AdaptedTask:
        """The same checkpoint with its labelled slices, where these are annotated here as they were; else as it is."""
        known = self.registry.labelled(name)
        try:
            support = self.labelled.these(known["support"]) if known.get("support") else {}
            if not support or digest(support) != known.get("support_digest"):
                return task
            task = with_support_again(task, support, self.embedder, config=self.config)
        except (InvalidRequest, NothingToLearn, *UNUSABLE):
            return task
        task = replace(task, card={**task.card, **known, "completed": []})
        self.registry.remember(name, task)
        return task


def _judged(card: Mapping[str, Any]) -> bool:
    """Whether a task checkpoint was adapted, or could have been and was better as it was."""
    return bool(card.get("settings", {}).get("adaptation", {}).get("steps", 0) > 0)


def judgement(card: Mapping[str, Any]) -> str:
    """What slices held out said of adaptation, for people."""
    told = [f"{label} {one['before']:.3f} -> {one['after']:.3f}" for label, one in card["dice_estimate"].items()]
    found = f" (Dice on annotated slices held out, before -> after: {', '.join(told)})" if told else ""
    return f"adaptation {'helps and is used from the next run on' if card['adapted'] else 'does not help'}{found}"
