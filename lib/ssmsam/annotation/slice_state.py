"""States of slices: what is known of a label on a slice, and why."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple

import numpy as np
from pydantic import StrictInt, StrictStr

from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import Grid, Plane

STORED_SLICES = Plane(0)


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
