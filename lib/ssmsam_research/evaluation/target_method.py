"""Our few-shot method under test: the same two functions that the server and the command line call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import AdaptationConfig
from ssmsam.fewshot.encoder_adaptation import adapt_online, reopened
from ssmsam.fewshot.pipeline import FewShotConfig, adapt, segment
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.self_sampling import without_modules
from ssmsam.progress import Progress, silent
from ssmsam_research.evaluation.fewshot import SupportSlice, Task

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
        config = self._config()
        asked = config if task.extent is None else _on_every_slice(config)
        decoder = without_modules(self.decoder, self.without)
        query = self.embedder.open(task.query)
        found = np.zeros(task.query.shape, dtype=bool)
        parts: list[tuple[Sequence[int], list[SupportSlice]]] = list(task.matched())
        if not self.matched:
            every = {(id(one.support), one.index): one for _, support in parts for one in support}
            parts = [([index for slices, _ in parts for index in slices], list(every.values()))]
        for slices, shown in parts:
            support = {_TARGET: [self._labelled(one) for one in shown]}
            elsewhere = any(one.volume != query.key.digest for one in support[_TARGET])
            head = adapt(support, self.embedder, decoder, complete=elsewhere, config=config, progress=progress)
            mask = segment(query, head, slices=slices, support=support, config=asked, progress=progress).mask
            found[list(slices)] = mask[list(slices)] == 1
        return found

    def _config(self) -> FewShotConfig:
        config = FewShotConfig(folds=self.folds)
        adaptation = replace(config.adaptation, steps=self.steps, budget_s=float("inf"))
        if not self.steps:  # nothing is learned from other views
            adaptation = replace(adaptation, views=replace(adaptation.views, views=0))
        return replace(
            config,
            adaptation=replace(adaptation, bank=replace(adaptation.bank, prior=self.prior)),
            segmentation=replace(config.segmentation, bank=replace(config.segmentation.bank, prior=self.prior)),
        )

    def _labelled(self, one: SupportSlice) -> LabelledSlice:
        return LabelledSlice(self.embedder.open(one.support.volume), one.index, one.mask)


def _on_every_slice(config: FewShotConfig) -> FewShotConfig:
    """For a query of which the protocol says that the target is on every slice that is asked for. The support's own
    volume is still completed without that knowledge."""
    return replace(config, segmentation=replace(config.segmentation, every_slice=True))


@dataclass(frozen=True)
class OnlineSegmentation:
    """SSM-SAM's full mode: adaptors inside the encoder learn too, so that the query is embedded anew."""

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
        found = segment(query, online.head, slices=slices, support=seen, config=asked, progress=progress).mask == 1
        return found
