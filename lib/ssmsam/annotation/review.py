"""Who worked on an image and for how long, what a second person says of it, and how far two people agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from itertools import combinations

from ssmsam.annotation.annotations import Annotations
from ssmsam.annotation.slice_state import SliceAnnotation, SliceKey, Source

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
