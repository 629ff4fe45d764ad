"""Points on every slice, the way SAM is prompted: what labelled slices as prompts are compared with (Xie et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ssmsam.cli.annotator import Click, next_click
from ssmsam.embeddings.embedder import Embedder
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.progress import Progress, silent
from ssmsam.volume.geometry import Plane
from ssmsam_research.model_choice import PromptedTarget
from ssmsam_research.protocols.fewshot_task import Task


class Clicker:
    """A simulated annotator of a whole volume. The truth (slices, rows, columns) leaves it only as clicks."""

    def __init__(self, truth: np.ndarray, *, pixel_mm: tuple[float, float]) -> None:
        self._truth = truth
        self._pixel_mm = pixel_mm

    def next_click(self, index: int, mask: np.ndarray, clicked: list[Click]) -> Click | None:
        """Where to click on a slice whose mask (height, width) is this; None where the slice is right, or the target
        was never on it."""
        truth = self._truth[index]
        return next_click(truth, mask, clicked=clicked, pixel_mm=self._pixel_mm) if truth.any() else None


@runtime_checkable
class ClickedMethod(Protocol):
    """A method that is not shown slices but clicked on: a protocol says so wherever it stands beside others."""

    def segment_clicked(self, task: Task, clicker: Clicker, progress: Progress = silent) -> np.ndarray:
        """The object's mask (slices, rows, columns) bool on the query's grid."""
        ...


@dataclass(frozen=True)
class PointPrompts:
    """Up to ``clicks`` on every slice that holds the object, each where the mask so far is most wrong, answered as
    ``sam_2d`` does. Slices without the object stay empty: a person would not click there. Annotated slices are not
    clicked on, and nothing else is learned from them."""

    embedder: Embedder
    decoder: PromptDecoder
    clicks: int = 1

    def segment_clicked(self, task: Task, clicker: Clicker, progress: Progress = silent) -> np.ndarray:
        found = np.zeros(task.query.shape, dtype=bool)
        query = self.embedder.open(task.query)
        for index in range(len(found)):
            progress("points", index, len(found))
            if index not in task.annotated:
                found[index] = self._clicked(PromptedTarget(query, self.decoder), index, clicker, found[index])
        return found

    def _clicked(self, target: PromptedTarget, index: int, clicker: Clicker, mask: np.ndarray) -> np.ndarray:
        clicks: list[Click] = []
        while len(clicks) < self.clicks:
            click = clicker.next_click(index, mask, clicks)
            if click is None:
                break
            clicks.append(click)
            mask = target.slice_mask(index, clicks, None)
        return mask


def clicker_for(task: Task, truth: np.ndarray) -> Clicker:
    """The annotator of a task's query."""
    return Clicker(truth, pixel_mm=Plane(0).pixel_mm(task.query.grid))
