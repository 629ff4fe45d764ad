"""What the server remembers of its side of the work: slices it asked for, masks it served, marks it received."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from ssmsam.annotation.annotations import pack_slices
from ssmsam.annotation.truth import STORED_SLICES, PackedMask
from ssmsam.imaging.plane import Plane

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
