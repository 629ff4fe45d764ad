"""A task together with its truth: what a protocol makes of a case, and how an answer is scored."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssmsam_research.methods.points import ClickedMethod, clicker_for
from ssmsam_research.metrics import dice
from ssmsam_research.protocols.fewshot_task import FewShotMethod, Task


def keep_slice(mask: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    """The scored slice on which a mask is wrong in most pixels, and the mask there, ready for JSON.

    Masks (slices, rows, columns), ``scored`` (slices,) bool. Where nothing is wrong, the slice where the object is
    largest.
    """
    wrong = (mask != truth).sum(axis=(1, 2)) * scored
    index = int((wrong if wrong.any() else truth.sum(axis=(1, 2)) * scored).argmax())
    packed = zlib.compress(np.packbits(mask[index] != 0).tobytes(), 9)
    return {"slice": index, "mask": base64.b64encode(packed).decode()}


def kept_mask(kept: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """The mask (rows, columns) bool that :func:`keep_slice` kept. Raises ValueError when it has another shape."""
    packed = np.frombuffer(zlib.decompress(base64.b64decode(kept["mask"])), dtype=np.uint8)
    rows, columns = shape
    if len(packed) != -(-rows * columns // 8):
        raise ValueError(f"the mask that was kept is not of shape {shape}: was the image changed since?")
    return np.unpackbits(packed, count=rows * columns).reshape(shape).astype(bool)


@dataclass(frozen=True, eq=False)
class Episode:
    """Only ``task`` is shown to a method, and clicks to one that lives by them.

    ``scored`` names sets of slices, (slices,) bool each, over which a three-dimensional Dice is taken; the first one
    is the protocol's figure. ``notes`` go into the record: which slices, which supports.
    """

    label: str
    setting: str
    task: Task
    truth: np.ndarray
    scored: Mapping[str, np.ndarray]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def _answer(self, method: FewShotMethod | ClickedMethod) -> np.ndarray:
        if isinstance(method, ClickedMethod):
            return method.segment_clicked(self.task, clicker_for(self.task, self.truth))
        return method.segment(self.task)

    def measure(
        self, method: FewShotMethod | ClickedMethod, *, surfaces: bool = False, keep: bool = False
    ) -> dict[str, Any]:
        """Run a method and score its mask: one record, ready for JSON; ``keep`` keeps a slice of the mask in it."""
        started = time.perf_counter()
        mask = self.task.finished(self._answer(method))
        seconds = time.perf_counter() - started
        scores = {name: dice(mask[slices], self.truth[slices]) for name, slices in self.scored.items()}
        first = next(iter(self.scored.values()))
        record: dict[str, Any] = {
            "label": self.label,
            "setting": self.setting,
            **self.notes,
            "dice": {name: round(score, 3) for name, score in scores.items()},
            "nothing_left": not self.truth[first].any(),
            "seconds": round(seconds, 3),
        }
        if keep:
            record["kept"] = keep_slice(mask, self.truth, first)
        if surfaces:
            from ssmsam_research.metrics import surface_distances  # MONAI takes seconds to import

            distances = surface_distances(mask, self.truth, self.task.query.spacing)
            record["surface"] = {name: round(mm, 3) for name, mm in distances.items()}
        return record
