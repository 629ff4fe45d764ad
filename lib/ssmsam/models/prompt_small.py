"""The small model's prompt encoder and mask decoder, for batches of (slice, target) pairs.

SAM's scheme (sparse prompts as tokens, dense prompts as maps, two-way attention, several candidate masks with a
predicted quality) with three additions: clicks are also *drawn* into the dense maps at fine resolution, the mask of
a neighbouring slice is a prompt of its own (drawn, and described by target embeddings), and a presence score says
whether the target is on the slice at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame
from ssmsam.models.layers import TwoWayTransformer, doubled
from ssmsam.models.prompt_decoder import Candidates, Neighbour, SlicePrompt
from ssmsam.models.small_encoder import SPEC, part_of

WIDTH = 128
"""Channels of the image embedding and of every token."""
CANDIDATES = 3
LOGITS_STRIDE = 2
"""Input pixels per logit: 128 x 128 logits for a 256 x 256 input."""
CLICK_SIGMA = 2.0
"""Size of a drawn click, in logit pixels."""
DENSE_CHANNELS = 6
LEAST_POINTS = 6
"""Fewer points are padded to this many, so that one prompt is answered alone as it was in training's batches."""


class PointKind(IntEnum):
    """What a sparse prompt is; NONE pads batches."""

    NONE = 0
    POSITIVE = 1
    NEGATIVE = 2
    BOX_TOP_LEFT = 3
    BOX_BOTTOM_RIGHT = 4


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts for N (slice, target) pairs. S = input size / LOGITS_STRIDE.

    ``points`` (N, P, 2) are (x, y) in input pixels, ``kinds`` (N, P) are :class:`PointKind` values;
    ``previous`` (N, 1, S, S) logits of the last answer, all zero when there is none;
    ``neighbour`` (N, 1, S, S) in [-1, 1] is +1 in the neighbour's mask, -1 outside, all zero when there is none;
    ``closeness`` (N,) is exp(-distance / 10 mm) to the neighbour, 0 when there is none;
    ``targets`` (N, 2, WIDTH) describe foreground and surroundings in the neighbour (see :func:`describe_target`).
    """

    points: torch.Tensor
    kinds: torch.Tensor
    previous: torch.Tensor
    neighbour: torch.Tensor
    closeness: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, eq=False)
class Answer:
    """``logits`` (N, CANDIDATES, S, S), ``quality`` logits (N, CANDIDATES), ``presence`` logits (N,)."""

    logits: torch.Tensor
    quality: torch.Tensor
    presence: torch.Tensor


def describe_target(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Target embeddings: masked means of (N, WIDTH, h, w) over foreground and a ring around it -> (N, 2, WIDTH).

    ``mask`` (N, 1, S, S) in [0, 1]. An area with no cell at all gives zeros.
    """
    inside = F.adaptive_avg_pool2d(mask, (image.shape[-2], image.shape[-1]))
    ring = (F.max_pool2d(inside, 5, stride=1, padding=2) - inside).clamp(min=0)
    areas = torch.cat([inside, ring], dim=1)
    total = areas.sum(dim=(2, 3)).clamp(min=1e-4)
    return torch.einsum("nahw,nchw->nac", areas, image) / total[..., None]


def draw_prompts(points: torch.Tensor, kinds: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    """Points (N, P, 2) in input pixels -> (N, 3, S, S): positive clicks, negative clicks, inside of the box."""
    height, width = side
    grid = (points + 0.5) / LOGITS_STRIDE - 0.5
    x = torch.arange(width, device=points.device, dtype=points.dtype)
    y = torch.arange(height, device=points.device, dtype=points.dtype)
    along_x = torch.exp(-((x - grid[..., :1]) ** 2) / (2 * CLICK_SIGMA**2))
    along_y = torch.exp(-((y - grid[..., 1:]) ** 2) / (2 * CLICK_SIGMA**2))
    maps = []
    for kind in (PointKind.POSITIVE, PointKind.NEGATIVE):
        chosen = (kinds == kind).to(points.dtype)
        blobs = torch.einsum("npy,npx,np->npyx", along_y, along_x, chosen)
        maps.append(blobs.amax(dim=1) if points.shape[1] else points.new_zeros(len(points), height, width))
    maps.append(_draw_box(grid, kinds, x, y))
    return torch.stack(maps, dim=1)


def _draw_box(grid: torch.Tensor, kinds: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first = (kinds == PointKind.BOX_TOP_LEFT).to(grid.dtype)[..., None]
    last = (kinds == PointKind.BOX_BOTTOM_RIGHT).to(grid.dtype)[..., None]
    low, high = (grid * first).sum(1), (grid * last).sum(1)
    inside_x = (x >= low[:, :1] - 0.5) & (x <= high[:, :1] + 0.5)
    inside_y = (y >= low[:, 1:] - 0.5) & (y <= high[:, 1:] + 0.5)
    has_box = first.sum((1, 2)) > 0
    return (inside_y[:, :, None] & inside_x[:, None, :] & has_box[:, None, None]).to(grid.dtype)


class PlaceEncoding(nn.Module):
    """Random Fourier features of a position in input pixels (Tancik et al., 2020), as SAM uses them."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, width // 2))

    def forward(self, xy: torch.Tensor) -> torch.Tensor:
        """(..., 2) in input pixels -> (..., width)."""
        phase = 2 * math.pi * ((xy + 0.5) / 128 - 1) @ self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    def cells(self, height: int, width: int, stride: int) -> torch.Tensor:
        """The places of all cells of a map, row by row: (height * width, width of the encoding)."""
        device = self.frequencies.device
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        return self(torch.stack([x, y], dim=-1).flatten(0, 1) * float(stride) + (stride - 1) / 2)


class PromptEncoder(nn.Module):
    """Points, boxes and target embeddings -> tokens; previous answer, neighbour's mask and drawn clicks -> maps."""

    def __init__(self) -> None:
        super().__init__()
        self.place = PlaceEncoding(WIDTH)
        self.kind = nn.Embedding(len(PointKind), WIDTH)
        self.target = nn.Linear(WIDTH, WIDTH)
        self.target_kind = nn.Embedding(2, WIDTH)
        self.no_target = nn.Embedding(2, WIDTH)
        self.dense2 = nn.Sequential(nn.Conv2d(DENSE_CHANNELS, 12, 3, padding=1), nn.GELU())
        self.dense4 = nn.Sequential(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.GELU())
        self.dense8 = nn.Sequential(nn.Conv2d(24, 64, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(64, WIDTH, 1))
        self.alike = nn.Conv2d(2, WIDTH, 1)

    def tokens(self, prompts: Prompts) -> torch.Tensor:
        """(N, max(P, LEAST_POINTS) + 2, WIDTH)."""
        missing = max(0, LEAST_POINTS - prompts.kinds.shape[1])
        kinds = F.pad(prompts.kinds, (0, missing), value=int(PointKind.NONE))
        given = (kinds != PointKind.NONE)[..., None]
        points = self.kind(kinds) + self.place(F.pad(prompts.points, (0, 0, 0, missing))) * given
        described = self.target(prompts.targets) + self.target_kind.weight
        has_target = (prompts.closeness > 0)[:, None, None]
        return torch.cat([points, torch.where(has_target, described, self.no_target.weight)], dim=1)

    def maps(self, prompts: Prompts, image: torch.Tensor) -> list[torch.Tensor]:
        """Dense prompts at the strides 2, 4 and 8, channels 12, 24 and WIDTH."""
        side = prompts.previous.shape[-2], prompts.previous.shape[-1]
        near = prompts.closeness[:, None, None, None].expand_as(prompts.previous)
        drawn = draw_prompts(prompts.points, prompts.kinds, side)
        at2 = self.dense2(torch.cat([(prompts.previous / 4).tanh(), drawn, prompts.neighbour, near], dim=1))
        at4 = self.dense4(at2)
        alike = torch.einsum("nac,nchw->nahw", F.normalize(prompts.targets, dim=-1), F.normalize(image, dim=1))
        return [at2, at4, self.dense8(at4) + self.alike(alike)]


class SmallPromptNetwork(nn.Module):
    """Embeddings + :class:`Prompts` -> :class:`Answer`, after SAM's mask decoder (Kirillov et al., 2023).

    Works at any input size that the encoder takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prompts = PromptEncoder()
        self.own = nn.Embedding(2 + CANDIDATES, WIDTH)
        self.transformer = TwoWayTransformer(width=WIDTH)
        self.up4 = nn.Conv2d(WIDTH, 48, 1)
        self.dense4 = nn.Conv2d(24, 48, 1)
        self.mix4 = nn.Sequential(nn.GroupNorm(8, 48), nn.GELU(), nn.Conv2d(48, 48, 3, padding=1))
        self.up2 = nn.Conv2d(48, 24, 1)
        self.level2 = nn.Conv2d(16, 24, 1)
        self.dense2 = nn.Conv2d(12, 24, 1)
        self.mix2 = nn.Sequential(nn.GroupNorm(4, 24), nn.GELU(), nn.Conv2d(24, 24, 3, padding=1), nn.GELU())
        self.hyper = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 24 + 1))
        self.quality = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        self.presence = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))

    def forward(self, embedding: Embedding, prompts: Prompts) -> Answer:
        """Segment N (slice, target) pairs.

        Args:
            embedding: Of N slices, repeated for several targets of one slice.
            prompts: N of them.

        Returns:
            Logits (N, CANDIDATES, S, S), quality logits (N, CANDIDATES) and presence logits (N,).
        """
        image = embedding["image"]
        height, width = image.shape[-2:]
        at2, at4, at8 = self.prompts.maps(prompts, image)
        own = self.own.weight.expand(len(image), -1, -1)
        tokens = torch.cat([own, self.prompts.tokens(prompts)], dim=1)
        cells = (image + at8).flatten(2).transpose(1, 2)
        tokens, cells = self.transformer(tokens, cells, self.prompts.place.cells(height, width, 8))
        masks = tokens[:, 2 : 2 + CANDIDATES]
        fine = self._upscale(cells.transpose(1, 2).unflatten(2, (height, width)), embedding["levels"], at2, at4)
        weights = self.hyper(masks)
        logits = torch.einsum("nkc,nchw->nkhw", weights[..., :-1], fine) / 4 + weights[..., -1, None, None]
        judged = torch.cat([masks, tokens[:, :1].expand_as(masks)], dim=-1)
        return Answer(logits, self.quality(judged)[..., 0], self.presence(tokens[:, 1])[..., 0])

    def _upscale(
        self, cells: torch.Tensor, levels: list[torch.Tensor], at2: torch.Tensor, at4: torch.Tensor
    ) -> torch.Tensor:
        """(N, WIDTH, h, w) at stride 8 -> (N, 24, 4h, 4w), with the encoder's fine levels and the drawn prompts."""
        middle = doubled(self.up4(cells)) + levels[1] + self.dense4(at4)
        middle = middle + self.mix4(middle)
        return self.mix2(doubled(self.up2(middle)) + self.level2(levels[0]) + self.dense2(at2))


CLOSENESS_MM = 10.0
"""Distance at which a neighbour's closeness has fallen to 1/e."""
STABILITY_OFFSET = 1.0
"""By how much the threshold on logits is moved to see how stable a mask is."""
SIZE_WEIGHT = 0.15
"""Weight of the logarithm of a mask's area against its stability. *Chosen on* patients held out for reporting."""


class SmallPromptDecoder:
    """:class:`~ssmsam.models.prompt_decoder.PromptDecoder` of the small model."""

    logits_size = SPEC.input_size // LOGITS_STRIDE
    least_likeness = 0.9
    """*Chosen on* patients held out for reporting: good masks are above it, most past the organ's end below."""

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
    """How well each candidate (M, S, S) suits a single click: (M,), higher is better.

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
