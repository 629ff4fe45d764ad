"""What a user asked for on one slice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def _no_points() -> np.ndarray:
    return np.zeros((0, 2))


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """Clicks and a box on one slice, in pixels of that slice, (x, y) with whole numbers at pixel centres.

    ``positive`` (N, 2) lie inside the target, ``negative`` (M, 2) outside it, in the order in which they were set.
    ``box`` is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1, both ends inside the box.
    """

    positive: np.ndarray = field(default_factory=_no_points)
    negative: np.ndarray = field(default_factory=_no_points)
    box: tuple[float, float, float, float] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing says where the target is."""
        return len(self.positive) == 0 and self.box is None

    @property
    def points(self) -> np.ndarray:
        """All clicks and the corners of the box: (N, 2)."""
        corners = np.zeros((0, 2)) if self.box is None else np.reshape(self.box, (2, 2))
        return np.concatenate([np.reshape(one, (-1, 2)) for one in (self.positive, self.negative, corners)])

    @property
    def clicks(self) -> int:
        return len(self.positive) + len(self.negative)
