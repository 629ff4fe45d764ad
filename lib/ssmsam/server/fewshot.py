"""The automatic model: learns from the annotated slices, proposes the rest. A thin front on ``ssmsam.fewshot``."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.annotation.truth import now
from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.correcting import Clicks
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.head import FEWSHOT, Head, UnusableHead
from ssmsam.fewshot.method import FewShotConfig, adapt, completed, segment
from ssmsam.fewshot.segmentation import Prediction
from ssmsam.fewshot.shelf import HeadShelf, UnknownHead
from ssmsam.fewshot.support import Support, digest
from ssmsam.progress import Cancelled
from ssmsam.prompting.request import PromptRequest
from ssmsam.prompting.wire import read_flag
from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.answer import centroids, write_mask
from ssmsam.server.background import Background
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.images import Images, OpenImage
from ssmsam.server.labelled import LabelledSlices
from ssmsam.server.phase import Phase
from ssmsam.ssm.methods import SSM_SAM
from ssmsam.ssm.starts import Starts

HINTS = 3
"""How many uncertain slices of each label the answer names."""

DESCRIPTIONS = {
    FEWSHOT: "Learns from the slices that were annotated so far, then segments this image",
    SSM_SAM: "The same with self-sampled points and mask attention, from a start made for quick adaptation",
}


@dataclass(frozen=True, kw_only=True)
class FewShotRoom:
    """What the tasks of one method work with that learn from annotated slices."""

    method: str = FEWSHOT
    images: Images
    datastore: Datastore
    embedder: Embedder
    decoder: TargetDecoder
    """As it came with the encoder's weights."""
    starts: Starts | None = None
    """Other decoders to adapt from; None where the method has no others."""
    background: Background
    shelf: HeadShelf
    labels: tuple[str, ...]
    """What viewers are offered, in their order."""
    config: FewShotConfig = field(default_factory=FewShotConfig)
    phase: Phase = field(default_factory=Phase)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _others: dict[str, None] = field(default_factory=dict)
    """Labels that were annotated under names of their own, in the order in which they were seen."""

    @property
    def labelled(self) -> LabelledSlices:
        """Raises InvalidRequest where the datastore keeps no annotations."""
        if not isinstance(self.datastore, AnnotatedStudies):
            raise InvalidRequest("this datastore keeps no annotations slice by slice")
        return LabelledSlices(images=self.images, embedder=self.embedder, datastore=self.datastore)

    @property
    def offered(self) -> list[str]:
        """The labels of viewers, and those that were annotated under other names.

        A label keeps its place: viewers that asked earlier would take a number for another organ's.
        """
        known = self.datastore.support().labels if isinstance(self.datastore, AnnotatedStudies) else ()
        self._others.update(dict.fromkeys(label for label in known if label not in self.labels))
        return [*self.labels, *self._others]

    @property
    def status(self) -> dict[str, Any]:
        """What runs now and which head answers, as JSON; and the start, where there is more than one."""
        found = {"adapting": self.phase.status, "head": vars(self.shelf.state)}
        return found if self.starts is None else {**found, "start": self.starts.state.active}

    @property
    def start(self) -> tuple[TargetDecoder, str]:
        """The decoder from which heads are adapted, and its name, "" for the one that came with the weights."""
        return (self.decoder, "") if self.starts is None else self.starts.current()

    def head(self, support: Support, config: FewShotConfig, *, volume: str = "") -> tuple[Head, str, bool]:
        """The head for this support, its name, and whether it was adapted just now. One adaptation at a time.

        It is ready to segment a ``volume``, any by default: labelled volumes are completed when that is first needed.
        """
        with self._alone():
            head, name, fresh = self._adapted(support, config)
            return self._completed(head, name, support, head.lacks(volume)), name, fresh

    def _adapted(self, support: Support, config: FewShotConfig) -> tuple[Head, str, bool]:
        state = self.shelf.state
        decoder, start = self.start
        if state.active:
            kept = self.kept(state.active)
            if kept is not None and (state.pinned or _is_made_of(kept, support, start, config)):
                return kept, state.active, False
        head = adapt(support, self.embedder, decoder, complete=False, config=config, progress=self.phase.progress)
        head = self.signed(head, start)
        return head, self.shelf.publish(head), True

    def _completed(self, head: Head, name: str, support: Support, labels: Collection[str]) -> Head:
        """The same head for volumes without annotated slices of these labels, kept so."""
        if not labels:
            return head
        head = completed(head, support, labels=labels, config=self.config, progress=self.phase.progress)
        self.shelf.replace(name, head)
        return head

    def whole(self, name: str) -> Path:
        """The file of a head that lacks nothing for other servers. Raises UnknownHead."""
        path, head = self.shelf.path(name), self.kept(name)
        if head is not None and head.lacks(""):
            with self._alone():
                self._completed(head, name, self.labelled.support(""), head.lacks(""))
        return path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One adaptation at a time, which may be cancelled."""
        with self.lock:
            try:
                yield
            except Cancelled:
                raise InvalidRequest("the adaptation was cancelled: run the model again to start it anew") from None
            finally:
                self.phase.end()

    def signed(self, head: Head, start: str) -> Head:
        """The same with a card that says the method and the start."""
        return replace(head, card={**head.card, "method": self.method, "start": start})

    def kept(self, name: str) -> Head | None:
        """The head of that name; None where it cannot be used with these weights, so that another is adapted."""
        try:
            return self.shelf.load(name, self.decoder, weights_sha256=self.embedder.encoder.weights_sha256)
        except (UnusableHead, UnknownHead, FileNotFoundError):
            return None


class FewShotTask(InferTask):
    """``fewshot`` and ``ssm_sam``: all annotated labels in one image. Adapts first when the annotations, or what
    adaptation starts from, have changed."""

    def __init__(self, room: FewShotRoom) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={label: number for number, label in enumerate(room.labels, 1)},
            dimension=3,
            description=DESCRIPTIONS[room.method],
            config={"adapt": True, "only_this_image": False, "budget_s": room.config.adaptation.budget_s},
        )
        self._room = room

    def is_valid(self) -> bool:
        return True

    def info(self) -> dict[str, Any]:
        labels = {label: number for number, label in enumerate(self._room.offered, 1)}
        return {**super().info(), "labels": labels}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """``request`` holds the viewer's parameters and ``image``, a :class:`~ssmsam.server.images.Source`.

        Returns the path of the label map and the details. Raises InvalidRequest, UnreadableVolume.
        """
        started = time.perf_counter()
        room = self._room
        options = {**self.config(), **request}
        image = room.images.open(options["image"])
        image_id = image.source.image_id
        support = room.labelled.support(
            image_id, labels=self._wanted(options), only_this=read_flag(options["only_this_image"], "only_this_image")
        )
        if not support:
            raise InvalidRequest(
                "no slice is annotated yet: draw an organ on a few slices and submit, or click on it with sam_2d and "
                "run accept_slice; then run this model again"
            )
        head, name, fresh = room.head(support, self._adaptation(options), volume=image.embeddings.key.digest)
        adapted = time.perf_counter()
        clicks = self._clicks(options, image, head)
        try:
            prediction = segment(
                image.embeddings,
                head,
                support=support,
                clicks=clicks,
                config=room.config,
                progress=room.phase.progress,
            )
        except Cancelled:
            raise InvalidRequest("the segmentation was cancelled: run the model again") from None
        finally:
            room.phase.end()
        segmented = time.perf_counter()
        values = self._values(prediction.labels, options)
        answer = _with_values(prediction, values)
        if _replaces_its_screen(options):
            self._keep_the_rest(image, answer, values)
        path = write_mask(answer, image.volume, options)
        self._serve(image, prediction, str(request.get("client_id") or ""), clicks)
        room.background.prefer(image)
        done = time.perf_counter()
        return path, {
            "label_names": values,
            "centroids": centroids(answer, values),
            "method": room.method,
            "head": name,
            "start": head.card.get("start", ""),
            "adapted_now": fresh,
            "dice_estimate": head.card["dice_estimate"],
            "learned_from": {label: len(slices) for label, slices in head.card["support"].items()},
            "uncertain_slices": hints(prediction, support, image.embeddings.key.digest),
            "latencies": {
                "pre": round(adapted - started, 4), "infer": round(segmented - adapted, 4), "post": 0.0,
                "write": round(done - segmented, 4), "total": round(done - started, 4),
            },
            "encoder": room.embedder.encoder.spec.name,
            "encoder_sha256": room.embedder.encoder.weights_sha256,
            "encoded_slices": room.embedder.encoded,
        }  # fmt: skip

    def _wanted(self, options: Mapping[str, Any]) -> list[str]:
        """The labels asked for: by name, or by number as viewers with class prompts send them; none means all."""
        numbers = options.get("label_prompt")
        if isinstance(numbers, list) and numbers:
            offered = self._room.offered
            return [offered[int(n) - 1] for n in numbers if str(n).isdigit() and 0 < int(n) <= len(offered)]
        names = options.get("labels")
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",") if name.strip()]
        return [str(name) for name in names] if isinstance(names, list) else []

    def _clicks(self, options: Mapping[str, Any], image: OpenImage, head: Head) -> dict[str, Clicks]:
        """Clicks that mend a proposal: they count only with a ``label``, for viewers leave old ones in requests."""
        label = str(options.get("label") or "")
        if not label:
            return {}
        prompts = PromptRequest.parse(options, grid=image.volume.grid, plane=image.embeddings.plane, dimension=3)
        if prompts.empty:
            return {}
        if label not in head.banks:
            raise InvalidRequest(
                f"there are clicks on {label!r}, but no annotated slice shows it; annotated labels: "
                f"{', '.join(head.labels)}. Use sam_2d to begin a new organ"
            )
        return {label: prompts.slices}

    def _adaptation(self, options: Mapping[str, Any]) -> FewShotConfig:
        config = self._room.config
        try:
            budget = float(options["budget_s"])
        except (TypeError, ValueError):
            raise InvalidRequest(f"budget_s has to be a number of seconds, got {options['budget_s']!r}") from None
        if not 0 < budget <= 3600:
            raise InvalidRequest(f"budget_s has to be between 0 and 3600 seconds, got {budget:g}")
        adaptation = replace(config.adaptation, budget_s=budget)
        if not read_flag(options["adapt"], "adapt"):
            return replace(config, adaptation=replace(adaptation, steps=0), folds=0)
        return replace(config, adaptation=adaptation)

    def _values(self, labels: Sequence[str], options: Mapping[str, Any]) -> dict[str, int]:
        """Label -> value in the answer.

        Clients that read the details get the found labels as 1, 2, ...: the others stay untouched on their screen.
        OHIF never sees the details and maps values by what /info said.
        """
        if _replaces_its_screen(options):
            offered = self._room.offered
            return {label: offered.index(label) + 1 for label in labels}
        return {label: number for number, label in enumerate(labels, 1)}

    def _keep_the_rest(self, image: OpenImage, answer: np.ndarray, values: dict[str, int]) -> None:
        """Add what else is on the screen of a viewer that is about to replace all of it.

        What it asked for without a label cannot be told apart there, so it goes, and nobody can accept it any more.
        """
        datastore = self._room.datastore
        if not image.source.image_id or not isinstance(datastore, AnnotatedStudies):
            return
        found, offered = set(values), self._room.offered
        for label, mask in datastore.screen(image.source.image_id, client="").items():
            if label in found:
                continue
            kept = mask & (answer == 0) if label in offered else np.zeros_like(mask)
            if kept.any():
                values[label] = offered.index(label) + 1
                answer[kept] = values[label]
            if mask.any():
                datastore.serve(image.source.image_id, kept, label=label, client="", plane=image.embeddings.plane)

    def _serve(self, image: OpenImage, prediction: Prediction, client: str, clicks: Mapping[str, Clicks]) -> None:
        datastore = self._room.datastore
        if not image.source.image_id or not isinstance(datastore, AnnotatedStudies):
            return
        when = now()
        for number, label in enumerate(prediction.labels, 1):
            mask = prediction.mask == number
            plane = image.embeddings.plane
            datastore.serve(
                image.source.image_id,
                mask,
                label=label,
                client=client,
                plane=plane,
                prompted=clicks.get(label, ()),
                when=when,
            )


def _is_made_of(head: Head, support: Support, start: str, config: FewShotConfig) -> bool:
    """Whether a head is what came of this support and this start, with adaptation or, as was asked for, without."""
    asked = head.card["settings"]["adaptation"]["steps"] > 0
    same = head.support_digest == digest(support) and head.card.get("start", "") == start
    return same and asked == (config.adaptation.steps > 0)


def _replaces_its_screen(options: Mapping[str, Any]) -> bool:
    """Whether the viewer is OHIF, known by what it sends: it drops every segment that an automatic model leaves out."""
    return "restore_label_idx" in options and not options.get("client_id")


def _with_values(prediction: Prediction, values: Mapping[str, int]) -> np.ndarray:
    table = np.array([0, *(values[label] for label in prediction.labels)], dtype=np.uint8)
    return table[prediction.mask]


def hints(prediction: Prediction, support: Support, volume: str) -> dict[str, list[int]]:
    """Label -> the slices, not annotated yet, whose masks are least sure of themselves, the worst first."""
    found = {}
    for number, label in enumerate(prediction.labels):
        annotated = {one.index for one in support.get(label, ()) if one.volume == volume}
        doubt = prediction.uncertainty[number] * ~np.isin(prediction.slices, list(annotated))
        worst = np.argsort(-doubt, kind="stable")[:HINTS]
        found[label] = [int(prediction.slices[row]) for row in worst if doubt[row] > 0.02]
    return found
