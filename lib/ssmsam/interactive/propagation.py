"""From the prompted slices to the whole volume, in both directions, on embeddings that are already there.

The prompted slices (seeds) cut the volume into sections: before the first seed, between two neighbouring seeds, after
the last. A :class:`Chain` walks away from a seed, slice by slice, each prompted by the mask
before it, until its stop rule ends it. Between two seeds both chains walk the whole way and the nearer one counts
more. What a section gets depends on its own seeds alone: after a correction only the sections next to the corrected
slice are computed again, and the result is the same as that of computing everything.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.interactive.segmenter import SliceMasks
from ssmsam.models.frame import draw_mask, logits_to_pixels
from ssmsam.models.prompt_decoder import Neighbour, PromptDecoder
from ssmsam.models.prompt_small import describe_target
from ssmsam.ops import signed_distance, touching
from ssmsam.progress import Progress, silent


@dataclass(frozen=True)
class PropagationConfig:
    """When a chain stops, and where it may go. The numbers are a *guess*."""

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
    ) -> None:
        self.embeddings, self.decoder, self.config = embeddings, decoder, config
        self.start, self.seed, self.end, self.step = start, np.asarray(seed, dtype=bool), end, step
        self.masks: dict[int, np.ndarray] = {}
        self.probabilities: dict[int, torch.Tensor] = {}
        """(1, S, S) in [0, 1], half precision, of the accepted slices."""
        self.stop: Stop | None = None
        self._last, self._index = self.seed, start
        self._seen = self._described(start, self.seed)
        self._look_ahead("" if self.seed.any() else "empty")

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
            mask=self._draw(self._index, self._last),
            distance_mm=self.embeddings.plane.slice_mm(self.embeddings.grid),
        )
        embedding = self.embeddings.slice(index)
        candidates = self.decoder.predict(embedding, frame=self.embeddings.frame, neighbour=neighbour)
        pixels = logits_to_pixels(candidates.logits[:1], self.embeddings.frame)[0]
        mask = touching(pixels > 0, self._last)
        reason = self._objection(mask, candidates.presence, float(candidates.quality[0]))
        if not reason and self._described(index, mask) @ self._seen < self.decoder.least_likeness:
            reason = "unlike"
        if reason:
            self.stop = Stop(self.start, index, reason)
            return
        self.masks[index] = mask
        self.probabilities[index] = candidates.logits[:1].float().sigmoid().half().cpu()
        self._last, self._index = mask, index
        self._look_ahead()

    def _draw(self, index: int, mask: np.ndarray) -> torch.Tensor:
        device = self.embeddings.slice(index)["image"].device
        return draw_mask(mask, self.embeddings.frame, self.decoder.logits_size, device)

    def _described(self, index: int, mask: np.ndarray) -> torch.Tensor:
        """(channels,) of unit length: what is inside a mask, as the encoder sees it."""
        image = self.embeddings.slice(index)["image"]
        return F.normalize(describe_target(image, self._draw(index, mask))[0, 0], dim=0)

    def _look_ahead(self, reason: str = "") -> None:
        if reason := reason or self._obstacle(self._index + self.step):
            self.give_up(reason)

    def give_up(self, reason: str) -> None:
        """Stop before the next slice."""
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


@dataclass(frozen=True, eq=False)
class Section:
    """The propagated slices between two seeds, or between a seed and the end of the volume."""

    masks: SliceMasks
    """Only slices that are not empty."""
    stops: tuple[Stop, ...]
    complete: bool
    """False when time ran out: then it is computed again the next time."""


@dataclass(frozen=True, eq=False)
class Propagation:
    """What became of the seeds."""

    masks: SliceMasks
    """Slice number -> mask of all slices that are not empty, seeds unchanged."""
    stops: tuple[Stop, ...]
    sections: Mapping[str, Section] = field(repr=False)
    """By what they were computed from, to be given to the next call."""
    steps: int
    """Slices that were decoded: 0 when everything could be used again."""


def propagate(
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    seeds: Mapping[int, np.ndarray],
    config: PropagationConfig = DEFAULTS,
    progress: Progress = silent,
    *,
    known: Mapping[str, Section] | None = None,
) -> Propagation:
    """Spread the masks of the prompted slices through the volume.

    ``seeds`` maps slice numbers to masks (height, width) bool; they are never changed. An empty seed says that the
    object is not on that slice, and nothing passes it. ``known`` are sections of an earlier call on the same volume
    with the same decoder. Chains take turns, so that slices near a seed come first when time is short.

    Reports ``progress("propagate", done, total)`` before each slice; what it raises ends the work.
    """
    wanted = _sections(seeds, config, embeddings.count)
    found = {key: known[key] for key in wanted if known and key in known and known[key].complete}
    chains = {
        key: _chains(embeddings, decoder, seeds, bounds, config) for key, bounds in wanted.items() if key not in found
    }
    steps = _walk([chain for several in chains.values() for chain in several], config, progress)
    sections = {key: found[key] if key in found else _section(chains[key]) for key in wanted}
    masks = SliceMasks({index: mask for index, mask in seeds.items() if mask.any()})
    for section in sections.values():
        masks.update(section.masks)
    stops = tuple(stop for section in sections.values() for stop in section.stops)
    return Propagation(masks=masks, stops=stops, sections=sections, steps=steps)


def _sections(
    seeds: Mapping[int, np.ndarray], config: PropagationConfig, count: int
) -> dict[str, tuple[int | None, int | None]]:
    """The sections in order, by digest of all that decides them: seeds and settings."""
    order = sorted(seeds)
    if not order:
        return {}
    if order[0] < 0 or order[-1] >= count:
        raise ValueError(f"seeds are on slices {order}, but the volume has slices 0 to {count - 1}")
    bounds: list[tuple[int | None, int | None]] = [(None, order[0]), *pairwise(order), (order[-1], None)]
    rules = {name: value for name, value in asdict(config).items() if name != "budget_s"}
    return {_digest(seeds, pair, rules): pair for pair in bounds}


def _digest(seeds: Mapping[int, np.ndarray], bounds: tuple[int | None, int | None], rules: dict) -> str:
    sha = hashlib.sha256(repr((bounds, sorted(rules.items()))).encode())
    for index in bounds:
        sha.update(b"" if index is None else np.packbits(seeds[index] != 0).tobytes())
    return sha.hexdigest()


def _walk(chains: list[Chain], config: PropagationConfig, progress: Progress) -> int:
    """Let the chains take turns until all have ended or time is up: the number of slices decoded."""
    end = None if config.budget_s is None else time.monotonic() + config.budget_s
    total, steps = sum(chain.reach for chain in chains), 0
    alive = [chain for chain in chains if chain.stop is None]
    while alive:
        for chain in alive:
            if end is not None and time.monotonic() >= end:
                chain.give_up("time")
                continue
            progress("propagate", steps, total)
            chain.advance()
            steps += 1
        alive = [chain for chain in alive if chain.stop is None]
    if total:
        progress("propagate", total, total)
    return steps


def _chains(
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    seeds: Mapping[int, np.ndarray],
    bounds: tuple[int | None, int | None],
    config: PropagationConfig,
) -> list[Chain]:
    """The chains of a section: one at an end of the volume, two between seeds."""
    lower, upper = bounds
    first, last = 0 if lower is None else lower + 1, embeddings.count - 1 if upper is None else upper - 1
    return [
        Chain(embeddings, decoder, start, seeds[start], end, step, config)
        for start, end, step in ((lower, last, 1), (upper, first, -1))
        if start is not None
    ]


def _section(chains: Sequence[Chain]) -> Section:
    """What the chains of a section found, put together."""
    masks = chains[0].masks if len(chains) == 1 else _blended(*chains)
    stops = tuple(chain.stop for chain in chains if chain.stop is not None)
    return Section(
        masks=SliceMasks({index: mask for index, mask in masks.items() if mask.any()}),
        stops=tuple(stop for stop in stops if stop.reason != "end"),
        complete=all(stop.reason != "time" for stop in stops),
    )


def _blended(up: Chain, down: Chain) -> dict[int, np.ndarray]:
    """Between two seeds: both chains weighted by nearness, one alone where the other ended.

    Where neither arrived, the shape between the two seeds: a user who prompted both means what lies between.
    """
    lower, upper = up.start, down.start
    masks = {}
    for index in range(lower + 1, upper):
        nearness = (upper - index) / (upper - lower)
        if index in up.masks and index in down.masks:
            masks[index] = _blend(up, down, index, nearness)
        elif index in up.masks or index in down.masks:
            masks[index] = up.masks[index] if index in up.masks else down.masks[index]
        elif up.may_reach(index) or down.may_reach(index):
            masks[index] = _shape_between(up.seed, down.seed, nearness)
    return masks


def _blend(up: Chain, down: Chain, index: int, nearness: float) -> np.ndarray:
    probability = nearness * up.probabilities[index].float() + (1 - nearness) * down.probabilities[index].float()
    mask = logits_to_pixels(probability - 0.5, up.embeddings.frame)[0] > 0
    return touching(mask, up.masks[index] | down.masks[index])


def _shape_between(lower: np.ndarray, upper: np.ndarray, nearness: float) -> np.ndarray:
    """The mask between two masks by their signed distances, ``nearness`` 1 at ``lower`` and 0 at ``upper``."""
    if not lower.any() or not upper.any():
        return np.zeros_like(lower)
    return nearness * signed_distance(lower) + (1 - nearness) * signed_distance(upper) > 0
