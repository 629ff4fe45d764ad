"""The prompt encoder and mask decoder of Segment Anything behind our interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame, mask_to_logits
from ssmsam.models.prompt_decoder import Candidates, Neighbour, SlicePrompt

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam

STABILITY_OFFSET = 1.0
"""Logits by which the threshold is raised and lowered to see how much a mask depends on it."""
NEIGHBOUR_POINTS = 3
"""Interior points that are taken from a neighbour's mask."""
BOX_MARGIN = 3
"""Input pixels by which a neighbour's box is widened for LiteMedSAM: what its makers do when they propagate a box."""


class SamPromptDecoder:
    """:class:`~ssmsam.models.prompt_decoder.PromptDecoder` of SAM and of networks with its layout (MedSAM).

    A single click is ambiguous: it gets the three candidates that SAM makes for that case. Everything else gets the
    one that SAM trained for clear prompts. A neighbour's mask becomes a mask input, its bounding box, and points at
    its largest inner distances: SAM knows no better description of a target on another slice. With ``propagates_box``
    it becomes the mask and a somewhat wider box, and no points: LiteMedSAM answers that better.

    SAM predicts no presence. Ours is a rule of thumb, predicted IoU times stability (the IoU between the mask at a
    raised and at a lowered threshold): both are low where nothing fits the prompt. It is not a probability.
    """

    def __init__(
        self, *, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, propagates_box: bool = False
    ) -> None:
        self.propagates_box = propagates_box
        self.prompt_encoder = prompt_encoder.eval().requires_grad_(False)
        self.mask_decoder = mask_decoder.eval().requires_grad_(False)
        self.mask_decoder.to(memory_format=torch.channels_last)  # a fifth less time a click
        self._places: torch.Tensor | None = None
        self.logits_size: int = prompt_encoder.mask_input_size[0]
        self.least_likeness = 0.0

    @classmethod
    def from_sam(cls, sam: Sam, *, propagates_box: bool = False) -> SamPromptDecoder:
        """Share the small parts of a whole SAM; its image encoder is not kept alive."""
        return cls(prompt_encoder=sam.prompt_encoder, mask_decoder=sam.mask_decoder, propagates_box=propagates_box)

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
        prompt = prompt or SlicePrompt()
        if prompt.empty and previous is None and neighbour is None:
            raise ValueError("nothing says where the target is: give a positive point, a box or a neighbour's mask")
        image = embedding["image"].float()
        points, labels = self._points(prompt, frame, neighbour)
        box = self._box(prompt, frame, neighbour)
        mask = previous if previous is not None or neighbour is None else mask_to_logits(neighbour.mask)
        sparse, dense = self.prompt_encoder(
            points=(points.to(image.device)[None], labels.to(image.device)[None]) if len(points) else None,
            boxes=None if box is None else box.to(image.device)[None],
            masks=None if mask is None else mask.to(image.device).float(),
        )
        logits, quality = self.mask_decoder(
            image_embeddings=image,
            image_pe=self._image_places(image.device),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=len(points) == 1 and box is None and mask is None,
        )
        order = quality[0].argsort(descending=True)
        logits, quality = logits[0, order], quality[0, order].clamp(0, 1)
        return Candidates(logits, quality, presence=float(quality[0]) * stability(logits[0]))

    def _image_places(self, device: torch.device) -> torch.Tensor:
        """Where the embedding's cells are, encoded: the same for every slice, and a tenth of a click's time to make."""
        if self._places is None or self._places.device != device:
            self._places = self.prompt_encoder.get_dense_pe().to(device)
        return self._places

    def _points(
        self, prompt: SlicePrompt, frame: Frame, neighbour: Neighbour | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (P, 2) as (x, y) in input pixels, positive ones first, and their labels (P,)."""
        positive, negative = (np.reshape(points, (-1, 2)) for points in (prompt.positive, prompt.negative))
        xy = [frame.points_to_input(np.concatenate([positive, negative]))]
        labels = [1] * len(positive) + [0] * len(negative)
        if neighbour is not None and not len(positive) and not self.propagates_box:
            inner = self._to_input(interior_points(self._inside(neighbour), NEIGHBOUR_POINTS))
            xy.append(inner)
            labels += [1] * len(inner)
        return torch.from_numpy(np.concatenate(xy)).float(), torch.tensor(labels, dtype=torch.int)

    def _box(self, prompt: SlicePrompt, frame: Frame, neighbour: Neighbour | None) -> torch.Tensor | None:
        """(4,) x0, y0, x1, y1 in input pixels: the prompt's box, else that of the neighbour's mask."""
        if prompt.box is not None:
            return torch.from_numpy(frame.box_to_input(prompt.box)).float().reshape(4)
        if neighbour is None:
            return None
        y, x = np.nonzero(self._inside(neighbour))
        corners = self._to_input(np.array([[x.min(), y.min()], [x.max(), y.max()]]))
        if self.propagates_box:
            corners = corners + BOX_MARGIN * np.array([[-1], [1]])
        return torch.from_numpy(corners).float().reshape(4)

    def _inside(self, neighbour: Neighbour) -> np.ndarray:
        """(S, S) bool: the cells that a neighbour's mask fills by half; of one that fills none, those it fills most."""
        shares = neighbour.mask[0, 0].float().cpu().numpy()
        inside = shares > min(0.5, shares.max() / 2)
        if not inside.any():
            raise ValueError("the neighbour's mask is empty: it says nothing about where the target is")
        return inside

    def _to_input(self, xy: np.ndarray) -> np.ndarray:
        """Points in pixels of the low-resolution grid -> the same in input pixels."""
        scale = self.prompt_encoder.input_image_size[0] / self.logits_size
        return (np.asarray(xy, dtype=np.float64) + 0.5) * scale - 0.5


def interior_points(mask: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` points (N, 2) as (x, y) inside a mask, each at the largest distance from border and others."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    yx = np.indices(mask.shape)
    points = []
    for _ in range(count):
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[y, x] <= 0:
            break
        points.append((x, y))
        depth = np.minimum(depth, np.hypot(yx[0] - y, yx[1] - x))
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def stability(logits: torch.Tensor) -> float:
    """IoU in [0, 1] between the masks (S, S) at a raised and at a lowered threshold; 0 for an empty mask."""
    low = int((logits > -STABILITY_OFFSET).sum())
    return int((logits > STABILITY_OFFSET).sum()) / low if low else 0.0
