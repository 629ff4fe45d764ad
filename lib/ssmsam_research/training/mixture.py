"""The stream of batches that training reads: clicks and labelled slices in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ssmsam_research.training.episodes import EpisodeBatch, Episodes
from ssmsam_research.training.group import GroupBatch
from ssmsam_research.training.groups import Groups


class Mixture(IterableDataset["EpisodeBatch | GroupBatch"]):
    """An endless, seeded stream; every worker process draws its own. ``group_share`` of the batches are groups."""

    def __init__(self, *, episodes: Episodes, groups: Groups, group_share: float, seed: int) -> None:
        self.episodes = episodes
        self.groups = groups
        self.group_share = group_share
        self.seed = seed

    def __iter__(self) -> Iterator[EpisodeBatch | GroupBatch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        clicked = self.episodes.stream(rng)
        while True:
            yield self.groups.draw(rng) if rng.random() < self.group_share else next(clicked)
