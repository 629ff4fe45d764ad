"""What the automatic models share: what is annotated, the heads that were made of it, and what adapts beside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssmsam.cache import Cache, KeyedLocks, SingleFlight
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, UnknownCheckpoint
from ssmsam.fewshot.estimate import LEAST_SLICES
from ssmsam.fewshot.initialisations import Initialisations
from ssmsam.fewshot.pipeline import FewShotConfig, adapt, completed, shown_again
from ssmsam.fewshot.support import NothingToLearn, Support, digest
from ssmsam.fewshot.task_checkpoint import FEWSHOT, UnusableCheckpoint, read_card
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.progress import Progress, holding, silent
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.answers import AnswerMemory
from ssmsam.service.background import Background
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import UNUSABLE, Images
from ssmsam.service.jobs import Job, Jobs
from ssmsam.service.labelled_slices import LabelledSlices

ADAPT, SEGMENT = "adapt", "segment"
"""Kinds of jobs."""
_HEADS_IN_MEMORY = 2
"""A guess: the head that answers and the one before it, 22 MB each."""


@dataclass(frozen=True, kw_only=True)
class FewShotService:
    """What the tasks of one method work with that learn from annotated slices."""

    method: str = FEWSHOT
    images: Images
    studies: AnnotatedStudies
    embedder: Embedder
    decoder: TargetDecoder
    """As it came with the encoder's weights."""
    starts: Initialisations | None = None
    """Other decoders to adapt from; None where the method has no others."""
    background: Background
    shelf: CheckpointRegistry
    labels: tuple[str, ...]
    """What viewers are offered, in their order."""
    config: FewShotConfig = field(default_factory=FewShotConfig)
    jobs: Jobs = field(default_factory=Jobs)
    answers: AnswerMemory = field(default_factory=AnswerMemory)
    adapting: threading.Lock = field(default_factory=threading.Lock)
    """One at a time adapts the decoder: tens of seconds, on all threads of the machine."""
    publishing: threading.Lock = field(default_factory=threading.Lock)
    """One at a time looks which heads there are and puts one beside them. Nothing is computed meanwhile."""
    _prompting: SingleFlight[Hashable, tuple[AdaptedTask, str]] = field(default_factory=SingleFlight)
    """Heads that are being made of a support and a start, without gradient steps."""
    _completing: KeyedLocks = field(default_factory=KeyedLocks)
    """By the names of heads: one at a time completes labelled volumes for it."""
    _others: dict[str, None] = field(default_factory=dict)
    """Labels that were annotated under names of their own, in the order in which they were seen."""
    _read: Cache[tuple[str, int], AdaptedTask] = field(default_factory=lambda: Cache(_HEADS_IN_MEMORY))
    """Heads that were read lately, by name and the time of their file."""

    @property
    def labelled(self) -> LabelledSlices:
        """The annotated slices of all images."""
        return LabelledSlices(images=self.images, embedder=self.embedder, studies=self.studies)

    @property
    def offered(self) -> list[str]:
        """The labels of viewers, and those that were annotated under other names.

        A label keeps its place: viewers that asked earlier would take a number for another organ's.
        """
        known: Iterable[str] = ()
        with suppress(StoreUnavailable, StoreRefused):  # viewers have to hear that the archive is down
            known = self.studies.support().labels
        self._others.update(dict.fromkeys(label for label in known if label not in self.labels))
        return [*self.labels, *self._others]

    @property
    def status(self) -> dict[str, Any]:
        """What runs now and which head answers, as JSON; and the start, where there is more than one."""
        running = [job.step for job in self.jobs.active(model=self.method) if job.state == "running"]
        found = {"adapting": running[0] if running else {}, "head": vars(self.shelf.state)}
        return found if self.starts is None else {**found, "start": self.starts.state.active}

    @property
    def start(self) -> tuple[TargetDecoder, str]:
        """The decoder from which heads are adapted, and its name, "" for the one that came with the weights."""
        return (self.decoder, "") if self.starts is None else self.starts.current()

    def head(
        self,
        support: Support,
        config: FewShotConfig,
        *,
        volume: str = "",
        wait: bool = True,
        progress: Progress = silent,
    ) -> tuple[AdaptedTask, str, bool]:
        """The head for this support, its name, and whether it was adapted just now.

        Without ``wait`` for an adaptation it is the best that there is, or the decoder prompted by the labelled slices.
        It is ready to segment a ``volume``, any by default: labelled volumes are completed when that is first needed.
        """
        adapts = config.adaptation.steps > 0
        if wait and adapts:
            progress("wait", 0, 0)
            with holding(self.adapting):
                head, name, fresh = self._adapted(support, config, progress)
        else:
            head, name, fresh = *self._prompted(support, config, either=adapts, progress=progress), False
        return self._completed(head, name, support, lambda one: one.lacks(volume), progress), name, fresh

    def adapt_beside(self, job: Job, read: Callable[[], Support], config: FewShotConfig) -> str:
        """The work of a job: adapt to what ``read`` finds annotated now. The new head answers from the next run on if
        it is estimated to be better on slices held out. The name of the head that answers."""
        support = read()
        job.subject = self.subject(support, config)
        with holding(self.adapting):
            head, name, _ = self._adapted(support, config, job.progress)
        job.detail = judgement(head.card)
        return name

    def subject(self, support: Support, config: FewShotConfig) -> object:
        """Equal exactly for adaptations that would do the same."""
        return digest(support), self.start[1], config.adaptation

    def worth_adapting(self, support: Support, config: FewShotConfig, name: str) -> bool:
        """Whether it is open if adaptation helps: nothing was estimated for this head, and something can be."""
        if config.adaptation.steps == 0 or config.folds < 2 or self.shelf.state.pinned:
            return False
        able = any(sum(one.drawn.any() for one in slices) >= LEAST_SLICES for slices in support.values())
        return able and not _judged(self.shelf.card(name)) and self._at_hand(support, _judged) is None

    def _adapted(self, support: Support, config: FewShotConfig, progress: Progress) -> tuple[AdaptedTask, str, bool]:
        """The head that was judged by an estimate, or is judged now."""
        found = self._pinned() or self._at_hand(support, _judged)
        if found:
            return *found, False
        decoder, start = self.start
        made = adapt(support, self.embedder, decoder, complete=False, config=config, progress=progress)
        made = self.signed(made, start)
        with self.publishing:
            plain = self._at_hand(support, lambda card: not _judged(card))
            if plain is None:
                return made, self.shelf.publish(made, decoder=self.decoder), bool(made.card["adapted"])
            if not made.card["adapted"]:  # the decoder is as it was: the head that there is now knows that it is best
                told = {key: made.card[key] for key in ("settings", "dice_estimate")}
                kept = replace(plain[0], card={**plain[0].card, **told})
                self.shelf.replace(plain[1], kept, decoder=self.decoder)
                return kept, plain[1], False
            name, known = self.shelf.publish(made, decoder=self.decoder), plain[0].completed
        return self._completed(made, name, support, lambda one: _without(known, one.completed), progress), name, True

    def _prompted(
        self, support: Support, config: FewShotConfig, *, either: bool, progress: Progress
    ) -> tuple[AdaptedTask, str]:
        """A head with the decoder as it is, or ``either`` that or an adapted one, whichever is at hand."""
        found = self._pinned() or self._at_hand(support, lambda card: either or not card.get("adapted"))
        if found:
            return found
        key = digest(support), self.start[1]
        return self._prompting.run(key, lambda: self._plain(support, config, progress))

    def _plain(self, support: Support, config: FewShotConfig, progress: Progress) -> tuple[AdaptedTask, str]:
        """The head that was made of this support without gradient steps, or is made now."""
        found = self._at_hand(support, lambda card: not card.get("adapted"))
        if found:
            return found
        decoder, start = self.start
        views = replace(config.adaptation.views, views=0)
        config = replace(config, adaptation=replace(config.adaptation, steps=0, views=views), folds=0)
        with self.jobs.turns.long():
            head = adapt(support, self.embedder, decoder, complete=False, config=config, progress=progress)
        head = self.signed(head, start)
        with self.publishing:
            return head, self.shelf.publish(head, decoder=self.decoder)

    def _pinned(self) -> tuple[AdaptedTask, str] | None:
        state = self.shelf.state
        kept = self.kept(state.active) if state.active and state.pinned else None
        return None if kept is None else (kept, state.active)

    def _at_hand(self, support: Support, fits: Callable[[Mapping[str, Any]], bool]) -> tuple[AdaptedTask, str] | None:
        """The head of this support and start that answers now or, of those on the shelf, the newest, which answers from
        now on."""
        wanted, start = digest(support), self.start[1]
        active, cards = self.shelf.state.active, self.shelf.cards()
        for name in sorted(cards, key=lambda one: (one == active, one), reverse=True):
            card = cards[name]
            same = card.get("support_digest") == wanted and card.get("start", "") == start
            if same and fits(card) and (name == active or not card.get("trained")):
                kept = self.kept(name)
                if kept is not None:
                    if name != active:
                        self.shelf.activate(name, pin=False)
                    return kept, name
        return None

    def _completed(
        self,
        head: AdaptedTask,
        name: str,
        support: Support,
        lacking: Callable[[AdaptedTask], Collection[str]],
        progress: Progress = silent,
    ) -> AdaptedTask:
        """The same head for volumes without annotated slices of the labels that are ``lacking``, kept so."""
        if not lacking(head):
            return head
        with self._completing.hold(name):
            head = self.kept(name) or head  # another request may just have completed it
            labels = lacking(head)
            if labels:
                with self.jobs.turns.long():
                    head = completed(head, support, labels=labels, config=self.config, progress=progress)
                self.shelf.replace(name, head, decoder=self.decoder)
        return head

    def whole(self, name: str, *, owner: str = "") -> Path:
        """The task checkpoint of a head that lacks nothing for other servers. ``owner`` is the job's.

        Raises UnknownCheckpoint, UnusableCheckpoint for what must not leave or is damaged, and Cancelled.
        """
        path, head = self.shelf.path(name), self.kept(name)
        read_card(path)
        if head is not None and head.lacks(""):
            title = f"{self.method}: labelled volumes are completed"
            job = Job(ADAPT, title=title, model=self.method, owner=owner)
            with self.jobs.running(job):
                self._completed(head, name, self.labelled.support(""), lambda one: one.lacks(""), job.progress)
        return path

    def take(self, data: bytes, name: str) -> str:
        """Put an exported task checkpoint beside the others; it does not answer yet. Raises UnusableCheckpoint and
        ValueError."""
        return self.shelf.add_file(data, name, self.decoder, weights_sha256=self.embedder.encoder.weights_sha256)

    def signed(self, head: AdaptedTask, start: str) -> AdaptedTask:
        """The same with a card that says the method and the start."""
        return replace(head, card={**head.card, "method": self.method, "start": start})

    def kept(self, name: str) -> AdaptedTask | None:
        """The head of that name; None where it cannot be used with these weights, so that another is adapted."""
        try:
            key = name, self.shelf.path(name).stat().st_mtime_ns
            return self._read.recalled(key, lambda: self._loaded(name))
        except (UnusableCheckpoint, UnknownCheckpoint, FileNotFoundError):
            return None

    def _loaded(self, name: str) -> AdaptedTask:
        head = self.shelf.load(name, self.decoder, weights_sha256=self.embedder.encoder.weights_sha256)
        return self._shown_again(name, head) if head.summarised else head

    def _shown_again(self, name: str, head: AdaptedTask) -> AdaptedTask:
        """The same head with its labelled slices, where these are annotated here as they were; else as it is."""
        known = self.shelf.labelled(name)
        try:
            support = self.labelled.these(known["support"]) if known.get("support") else {}
            if not support or digest(support) != known.get("support_digest"):
                return head
            head = shown_again(head, support, self.embedder, config=self.config)
        except (InvalidRequest, NothingToLearn, *UNUSABLE):
            return head
        head = replace(head, card={**head.card, **known, "completed": []})
        self.shelf.remember(name, head)
        return head


def _without(labels: Collection[str], known: Collection[str]) -> list[str]:
    return [label for label in labels if label not in known]


def _judged(card: Mapping[str, Any]) -> bool:
    """Whether a head was adapted, or could have been and was better as it was."""
    return bool(card.get("settings", {}).get("adaptation", {}).get("steps", 0) > 0)


def judgement(card: Mapping[str, Any]) -> str:
    """What slices held out said of adaptation, for people."""
    told = [f"{label} {one['before']:.3f} -> {one['after']:.3f}" for label, one in card["dice_estimate"].items()]
    found = f" (Dice on annotated slices held out, before -> after: {', '.join(told)})" if told else ""
    return f"adaptation {'helps and is used from the next run on' if card['adapted'] else 'does not help'}{found}"
