"""Walking away from a prompted slice, each slice prompted by the mask of the one before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.prompting.correction import connected_to
from ssmsam.prompting.decoder import Neighbour, PromptDecoder
from ssmsam.prompting.drawing import draw_mask, logits_to_pixels
from ssmsam.prompting.small_network import describe_target


@dataclass(frozen=True)
class PropagationConfig:
    """When a chain stops, and where it may go."""

    min_presence: float = 0.5
    """Below this predicted probability the target is not on the slice."""
    min_quality: float = 0.2
    """Below this predicted IoU the mask is a guess."""
    min_iou: float = 0.15
    """Masks of neighbouring slices that overlap less are not the same object."""
    min_area_ratio: float = 0.1
    """A mask that shrinks to less than this share from one slice to the next has collapsed."""
    max_area_ratio: float = 4.0
    """A mask that grows by more than this from one slice to the next has leaked."""
    small_mm2: float = 150.0
    """Smaller masks may grow as if they had this area: the tip of an organ widens fast."""
    limits: tuple[int, int] | None = None
    """First and last slice that may be reached."""
    max_mm: float | None = None
    """Greatest distance from the seed."""
    budget_s: float | None = None
    """Time for the whole propagation. What is not reached in time stays empty."""


DEFAULTS = PropagationConfig()


@dataclass(frozen=True)
class Stop:
    """Where and why a chain ended."""

    seed: int
    at: int
    """The first slice that was not accepted."""
    reason: str
    """end, limit, distance, time, presence, quality, empty, collapsed, leaked, jumped, unlike (the seed)."""


class Chain:
    """Slices from ``start`` (exclusive) to ``end`` (inclusive) in steps of ``step`` (1 or -1).

    ``masks`` holds the accepted slices; ``stop`` is None while the chain goes on.
    """

    def __init__(
        self,
        embeddings: VolumeEmbeddings,
        decoder: PromptDecoder,
        start: int,
        seed: np.ndarray,
        end: int,
        step: int,
        config: PropagationConfig,
        *,
        keep_probabilities: bool = False,
    ) -> None:
        self.embeddings, self.decoder, self.config = embeddings, decoder, config
        self.start, self.seed, self.end, self.step = start, np.asarray(seed, dtype=bool), end, step
        self.masks: dict[int, np.ndarray] = {}
        self.probabilities: dict[int, torch.Tensor] = {}
        """(1, S, S) in [0, 1], half precision, of the accepted slices, when wanted."""
        self.stop: Stop | None = None
        self._keep_probabilities = keep_probabilities
        self._last, self._index = self.seed, start
        self._seen = self._described(start, self.seed)
        if not self.seed.any():
            self._end("empty")
        else:
            self._look_ahead()

    @property
    def reach(self) -> int:
        """How many slices there are to go at most."""
        return sum(self.may_reach(index) for index in range(self.start + self.step, self.end + self.step, self.step))

    def may_reach(self, index: int) -> bool:
        """Whether the settings let the chain come to a slice, whatever is on it."""
        return self._obstacle(index) == ""

    def advance(self) -> None:
        """Segment the next slice; accept it and go on, or stop."""
        index = self._index + self.step
        neighbour = Neighbour(
            embedding=self.embeddings.slice(self._index),
            mask=self._drawn(),
            distance_mm=self.embeddings.plane.slice_mm(self.embeddings.grid),
        )
        embedding = self.embeddings.slice(index)
        candidates = self.decoder.predict(embedding, frame=self.embeddings.frame, neighbour=neighbour)
        pixels = logits_to_pixels(candidates.logits[:1], self.embeddings.frame)[0]
        mask = connected_to(pixels > 0, self._last)
        reason = self._objection(mask, candidates.presence, float(candidates.quality[0]))
        if not reason and self._described(index, mask) @ self._seen < self.decoder.least_likeness:
            reason = "unlike"
        if reason:
            self.stop = Stop(self.start, index, reason)
            return
        self.masks[index] = mask
        if self._keep_probabilities:
            self.probabilities[index] = candidates.logits[:1].float().sigmoid().half().cpu()
        self._last, self._index = mask, index
        self._look_ahead()

    def give_up(self) -> None:
        """Stop because time is up."""
        self._end("time")

    def _drawn(self) -> torch.Tensor:
        return self._draw(self._index, self._last)

    def _draw(self, index: int, mask: np.ndarray) -> torch.Tensor:
        device = self.embeddings.slice(index)["image"].device
        return draw_mask(mask, self.embeddings.frame, self.decoder.logits_size, device)

    def _described(self, index: int, mask: np.ndarray) -> torch.Tensor:
        """(channels,) of unit length: what is inside a mask, as the encoder sees it."""
        image = self.embeddings.slice(index)["image"]
        return F.normalize(describe_target(image, self._draw(index, mask))[0, 0], dim=0)

    def _look_ahead(self) -> None:
        reason = self._obstacle(self._index + self.step)
        if reason:
            self._end(reason)

    def _end(self, reason: str) -> None:
        self.stop = Stop(self.start, self._index + self.step, reason)

    def _obstacle(self, index: int) -> str:
        """What keeps a chain from a slice, before looking at it."""
        config = self.config
        if (self.end - index) * self.step < 0:
            return "end"
        if config.limits is not None and not config.limits[0] <= index <= config.limits[1]:
            return "limit"
        distance = abs(index - self.start) * self.embeddings.plane.slice_mm(self.embeddings.grid)
        return "distance" if config.max_mm is not None and distance > config.max_mm + 1e-6 else ""

    def _objection(self, mask: np.ndarray, presence: float, quality: float) -> str:
        """The stop rule: why a mask is not accepted, or nothing."""
        config, area, before = self.config, int(mask.sum()), int(self._last.sum())
        if area == 0:
            return "empty"
        if presence < config.min_presence:
            return "presence"
        if quality < config.min_quality:
            return "quality"
        if area < config.min_area_ratio * before:
            return "collapsed"
        pixel_mm2 = float(np.prod(self.embeddings.plane.pixel_mm(self.embeddings.grid)))
        if area > config.max_area_ratio * max(before, config.small_mm2 / pixel_mm2):
            return "leaked"
        overlap = int((mask & self._last).sum())
        return "jumped" if overlap < config.min_iou * (area + before - overlap) else ""
