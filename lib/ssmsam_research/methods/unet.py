"""Baseline: a U-Net trained from scratch on the support slices alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import ViewConfig
from ssmsam.fewshot.episodes import random_move
from ssmsam.models.frame import draw_mask, logits_to_pixels
from ssmsam.progress import Progress, silent
from ssmsam_research.protocols.fewshot_task import SupportSlice, Task


@dataclass(frozen=True)
class UNetFromScratch:
    """MONAI's BasicUNet on what the encoder sees of a slice (256 x 256, with both neighbours), Dice and cross-entropy.

    Trained for ``steps``, the same whatever else the machine does, with random rotation, scale, shift and gamma.
    """

    embedder: Embedder
    steps: int = 60
    batch: int = 4
    learning_rate: float = 2e-3
    features: tuple[int, ...] = (16, 32, 64, 128, 128, 16)

    def segment(self, task: Task, progress: Progress = silent) -> np.ndarray:
        every = {(id(one.support), one.index): one for _, support in task.matched() for one in support}
        network = self._trained(list(every.values()), progress)
        query, found = self.embedder.open(task.query), np.zeros(task.query.shape, dtype=bool)
        wanted = [index for slices, _ in task.matched() for index in slices]
        with torch.inference_mode():
            for number, index in enumerate(wanted):
                progress("u-net", number, len(wanted))
                found[index] = logits_to_pixels(network(query.inputs([index]))[0], query.frame)[0] > 0
        return found

    def _trained(self, support: list[SupportSlice], progress: Progress) -> torch.nn.Module:
        opened = [self.embedder.open(one.support.volume) for one in support]
        inputs = torch.cat([each.inputs([one.index]) for one, each in zip(support, opened, strict=True)])
        side = inputs.shape[-1]
        masks = torch.cat([draw_mask(one.mask, each.frame, side) for one, each in zip(support, opened, strict=True)])
        generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = BasicUNet(spatial_dims=2, in_channels=3, out_channels=1, features=self.features)
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.learning_rate)
        loss = DiceCELoss(sigmoid=True)
        for step in range(self.steps):
            progress("train u-net", step, self.steps)
            picked = torch.randint(len(inputs), (self.batch,), generator=generator)
            move, gamma = random_move(rng, ViewConfig())
            optimiser.zero_grad()
            loss(network(move(inputs[picked]).clamp(0, 1) ** gamma), move(masks[picked]).clamp(0, 1)).backward()
            optimiser.step()
        return network.eval()
