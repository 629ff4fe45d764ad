"""From the prompted slices to the whole volume, in both directions, on embeddings that are already there.

The prompted slices (seeds) cut the volume into sections: before the first seed, between two neighbouring seeds, after
the last. A :class:`~ssmsam.prompting.chain.Chain` walks away from a seed, slice by slice, each prompted by the mask
before it, until its stop rule ends it. Between two seeds both chains walk the whole way and the nearer one counts
more. What a section gets depends on its own seeds alone: after a correction only the sections next to the corrected
slice are computed again, and the result is the same as that of computing everything.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
from scipy import ndimage

from ssmsam.encoders.volume_embeddings import VolumeEmbeddings
from ssmsam.progress import Progress, silent
from ssmsam.prompting.chain import DEFAULTS, Chain, PropagationConfig, Stop
from ssmsam.prompting.correction import connected_to
from ssmsam.prompting.decoder import PromptDecoder
from ssmsam.prompting.drawing import logits_to_pixels
from ssmsam.prompting.slice_masks import SliceMasks

__all__ = ["DEFAULTS", "Propagation", "PropagationConfig", "Section", "Stop", "propagate"]


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
    builders = {
        key: _Builder(embeddings, decoder, seeds, *bounds, config) for key, bounds in wanted.items() if key not in found
    }
    steps = _walk([chain for builder in builders.values() for chain in builder.chains], config, progress)
    sections = {key: found[key] if key in found else builders[key].section() for key in wanted}
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
                chain.give_up()
                continue
            progress("propagate", steps, total)
            chain.advance()
            steps += 1
        alive = [chain for chain in alive if chain.stop is None]
    if total:
        progress("propagate", total, total)
    return steps


class _Builder:
    """A section under construction: one chain at an end of the volume, two between seeds."""

    def __init__(
        self,
        embeddings: VolumeEmbeddings,
        decoder: PromptDecoder,
        seeds: Mapping[int, np.ndarray],
        lower: int | None,
        upper: int | None,
        config: PropagationConfig,
    ) -> None:
        self.frame = embeddings.frame
        self.between = lower is not None and upper is not None
        self.chains: list[Chain] = []
        first, last = 0 if lower is None else lower + 1, embeddings.count - 1 if upper is None else upper - 1
        for start, end, step in ((lower, last, 1), (upper, first, -1)):
            if start is not None:
                seed, keep = seeds[start], self.between
                self.chains.append(Chain(embeddings, decoder, start, seed, end, step, config, keep_probabilities=keep))

    def section(self) -> Section:
        """What the chains found, put together."""
        masks = self._blended() if self.between else self.chains[0].masks
        stops = tuple(chain.stop for chain in self.chains if chain.stop is not None)
        return Section(
            masks=SliceMasks({index: mask for index, mask in masks.items() if mask.any()}),
            stops=tuple(stop for stop in stops if stop.reason != "end"),
            complete=all(stop.reason != "time" for stop in stops),
        )

    def _blended(self) -> dict[int, np.ndarray]:
        """Between two seeds: both chains weighted by nearness, one alone where the other ended.

        Where neither arrived, the shape between the two seeds: a user who prompted both means what lies between.
        """
        up, down = self.chains
        lower, upper = up.start, down.start
        masks = {}
        for index in range(lower + 1, upper):
            nearness = (upper - index) / (upper - lower)
            if index in up.masks and index in down.masks:
                masks[index] = self._blend(up, down, index, nearness)
            elif index in up.masks or index in down.masks:
                masks[index] = up.masks[index] if index in up.masks else down.masks[index]
            elif up.may_reach(index) or down.may_reach(index):
                masks[index] = _shape_between(up.seed, down.seed, nearness)
        return masks

    def _blend(self, up: Chain, down: Chain, index: int, nearness: float) -> np.ndarray:
        probability = nearness * up.probabilities[index].float() + (1 - nearness) * down.probabilities[index].float()
        mask = logits_to_pixels(probability - 0.5, self.frame)[0] > 0
        return connected_to(mask, up.masks[index] | down.masks[index])


def _shape_between(lower: np.ndarray, upper: np.ndarray, nearness: float) -> np.ndarray:
    """The mask between two masks by their signed distances, ``nearness`` 1 at ``lower`` and 0 at ``upper``."""
    if not lower.any() or not upper.any():
        return np.zeros_like(lower)
    return nearness * _signed_distance(lower) + (1 - nearness) * _signed_distance(upper) > 0


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Pixels to the border, positive inside."""
    return ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
