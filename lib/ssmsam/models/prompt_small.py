"""The small model's prompted mask decoder, one slice at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame
from ssmsam.models.prompt_decoder import Candidates, Neighbour, SlicePrompt
from ssmsam.models.prompt_small_network import (
    LOGITS_STRIDE,
    WIDTH,
    PointKind,
    Prompts,
    SmallPromptNetwork,
    describe_target,
)
from ssmsam.models.small_encoder import SPEC, part_of

CLOSENESS_MM = 10.0
"""Distance at which a neighbour's closeness has fallen to 1/e."""
STABILITY_OFFSET = 1.0
"""By how much the threshold on logits is moved to see how stable a mask is."""
SIZE_WEIGHT = 0.15
"""Weight of the logarithm of a mask's area against its stability, chosen on the validation patients."""


class SmallPromptDecoder:
    """:class:`~ssmsam.models.prompt_decoder.PromptDecoder` of the small model."""

    logits_size = SPEC.input_size // LOGITS_STRIDE
    least_likeness = 0.9
    """Chosen on the validation patients: good masks are above it, most of those past the organ's end below."""

    def __init__(self, *, network: SmallPromptNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path) -> SmallPromptDecoder:
        """From the same file as the encoder."""
        network = SmallPromptNetwork()
        network.load_state_dict(part_of(load_file(str(path)), "prompting"))
        return cls(network=network)

    @torch.inference_mode()
    def predict(
        self,
        embedding: Embedding,
        *,
        frame: Frame,
        prompt: SlicePrompt | None = None,
        previous: torch.Tensor | None = None,
        neighbour: Neighbour | None = None,
    ) -> Candidates:
        if (prompt is None or prompt.empty) and previous is None and neighbour is None:
            raise ValueError("nothing says where the target is: give a positive point, a box or a neighbour's mask")
        device = embedding["image"].device
        points, kinds = point_tensors(prompt or SlicePrompt(), frame)
        blank = torch.zeros(1, 1, self.logits_size, self.logits_size, device=device)
        prompts = Prompts(
            points=points[None].to(device),
            kinds=kinds[None].to(device),
            previous=blank if previous is None else previous.to(device),
            neighbour=blank if neighbour is None else neighbour.mask.to(device) * 2 - 1,
            closeness=torch.tensor([closeness(neighbour.distance_mm) if neighbour else 0.0], device=device),
            targets=describe_target(neighbour.embedding["image"], neighbour.mask.to(device))
            if neighbour
            else torch.zeros(1, 2, WIDTH, device=device),
        )
        answer = self.network(embedding, prompts)
        single_click = prompt is not None and prompt.clicks == 1 and prompt.box is None
        ambiguous = single_click and previous is None and neighbour is None
        order = (size_and_stability(answer.logits[0]) if ambiguous else answer.quality[0]).argsort(descending=True)
        presence = 1.0 if prompt is not None and not prompt.empty else float(answer.presence[0].sigmoid())
        return Candidates(answer.logits[0, order], answer.quality[0, order].sigmoid(), presence)


def size_and_stability(logits: torch.Tensor) -> torch.Tensor:
    """How well each candidate (M, S, S) suits a lone click: (M,), higher is better.

    One click does not say how much is meant, and the predicted quality of the candidates, which differ in size,
    hardly differs. The share of a mask that stays when the threshold is raised says how sure its border is; among
    sure ones the larger is what is usually meant.
    """
    area = (logits > 0).sum((1, 2))
    stability = (logits > STABILITY_OFFSET).sum((1, 2)) / (logits > -STABILITY_OFFSET).sum((1, 2)).clamp(min=1)
    return stability + SIZE_WEIGHT * torch.log1p(area.float())


def closeness(distance_mm: float) -> float:
    """How much a neighbour's mask says about this slice: 1 at no distance, 1/e at CLOSENESS_MM to either side."""
    return math.exp(-abs(distance_mm) / CLOSENESS_MM)


def point_tensors(prompt: SlicePrompt, frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """A slice's prompt -> points (P, 2) in input pixels and kinds (P,)."""
    corners = np.zeros((0, 2)) if prompt.box is None else frame.box_to_input(prompt.box)
    clicks = np.concatenate([np.reshape(p, (-1, 2)) for p in (prompt.positive, prompt.negative)])
    kinds = [PointKind.POSITIVE] * len(prompt.positive) + [PointKind.NEGATIVE] * len(prompt.negative)
    kinds += [PointKind.BOX_TOP_LEFT, PointKind.BOX_BOTTOM_RIGHT] if len(corners) else []
    points = torch.from_numpy(np.concatenate([frame.points_to_input(clicks), corners])).float()
    return points, torch.tensor([int(kind) for kind in kinds], dtype=torch.long)
