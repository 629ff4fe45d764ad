"""Our few-shot method under test: the same two functions that the server and the command line call."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import numpy as np

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import AdaptationConfig, FewShotConfig
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.fewshot.support_bank import Prior, interpolated
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.progress import Progress, silent
from ssmsam.registration.slices import SliceMotion
from ssmsam_research.methods.encoder_adapters import adapt_online, reopened
from ssmsam_research.protocols.fewshot_task import SupportSlice, Task

_TARGET = "target"


@dataclass(frozen=True)
class FewShotSegmentation:
    """Adapt to the support slices, then segment the query. ``steps`` 0 prompts the decoder without adapting it.

    ``matched``: where a protocol says which support slice belongs to which part of the query, each part is shown only
    that one, as in the literature; otherwise all of them. ``folds`` 0 adapts without an estimate. ``prior`` is what
    annotated slices of the query say between them, and ``without`` names modules of SSM-SAM that are switched off.
    """

    embedder: Embedder
    decoder: TargetDecoder
    steps: int = 30
    folds: int = 0
    matched: bool = False
    prior: Literal["interpolated", "nearest"] = "interpolated"
    without: tuple[str, ...] = ()

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        with _nearest_prior() if self.prior == "nearest" else nullcontext():
            return self._segment(task, progress)

    def _segment(self, task: Task, progress: Progress) -> np.ndarray:
        config = self._config()
        asked = config if task.extent is None else _on_every_slice(config)
        decoder = without_modules(self.decoder, self.without)
        query = self.embedder.open(task.query)
        found = np.zeros(task.query.shape, dtype=bool)
        parts: list[tuple[Sequence[int], list[SupportSlice]]] = list(task.matched())
        if not self.matched:
            every = {(id(one.support), one.index): one for _, support in parts for one in support}
            parts = [([index for slices, _ in parts for index in slices], list(every.values()))]
        for slices, supports in parts:
            support = {_TARGET: [self._labelled(one) for one in supports]}
            elsewhere = any(one.volume != query.key.digest for one in support[_TARGET])
            adapted = adapt(support, self.embedder, decoder, pseudo_labels=elsewhere, config=config, progress=progress)
            mask = segment(query, adapted, slices=slices, support=support, config=asked, progress=progress).mask
            found[list(slices)] = mask[list(slices)] == 1
        return found

    def _config(self) -> FewShotConfig:
        config = FewShotConfig(folds=self.folds)
        adaptation = replace(config.adaptation, steps=self.steps, budget_s=float("inf"))
        if not self.steps:  # nothing is learned from other views
            adaptation = replace(adaptation, views=replace(adaptation.views, views=0))
        return replace(config, adaptation=adaptation)

    def _labelled(self, one: SupportSlice) -> LabelledSlice:
        return LabelledSlice(self.embedder.open(one.support.volume), one.index, one.mask)


def without_modules(decoder: TargetDecoder, names: Sequence[str]) -> TargetDecoder:
    """The same decoder, sharing its weights, with modules of its config switched off; for ablations."""
    if not names:
        return decoder
    if not isinstance(decoder, SelfSamplingDecoder):
        raise ValueError(f"only SSM-SAM's decoder has modules to switch off, not {type(decoder).__name__}")
    variant = copy.copy(decoder)
    switched: dict[str, Any] = dict.fromkeys(names, False)
    variant.config = replace(decoder.config, **switched)
    return variant


def _nearest_prior() -> AbstractContextManager[Any]:
    """For an ablation: the prior is the mask of the nearest slice alone, as Zhang et al. (2024) blur it."""
    return mock.patch("ssmsam.fewshot.support_bank.interpolated", _nearest)


def _nearest(
    distances: Mapping[float, np.ndarray], position: float, shape: tuple[int, int], motion: SliceMotion | None = None
) -> Prior:
    near = sorted(distances, key=lambda z: abs(z - position))[:1]
    return interpolated({z: distances[z] for z in near}, position, shape)


def _on_every_slice(config: FewShotConfig) -> FewShotConfig:
    """For a query of which the protocol says that the target is on every slice that is asked for. The support's own
    volume still gets pseudo-labels without that knowledge."""
    return replace(config, segmentation=replace(config.segmentation, every_slice=True))


@dataclass(frozen=True)
class OnlineSegmentation:
    """SSM-SAM's full mode: adapters inside the encoder learn too, so that the query is embedded anew."""

    embedder: Embedder
    decoder: TargetDecoder
    steps: int = 30

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        slices = [index for part, _ in task.matched() for index in part]
        every = {(id(one.support), one.index): one for _, support in task.matched() for one in support}
        support = {
            _TARGET: [
                LabelledSlice(self.embedder.open(one.support.volume), one.index, one.mask) for one in every.values()
            ]
        }
        config = AdaptationConfig(steps=self.steps, budget_s=float("inf"))
        online = adapt_online(support, self.embedder, self.decoder, config=config, progress=progress)
        seen = {_TARGET: [reopened(one, online.embedder) for one in support[_TARGET]]}
        query = online.embedder.open(task.query)
        asked = FewShotConfig() if task.extent is None else _on_every_slice(FewShotConfig())
        found = segment(query, online.task, slices=slices, support=seen, config=asked, progress=progress).mask == 1
        return found
