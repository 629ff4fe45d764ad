"""Masks of slices, drawn where decoders want them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.encoders.frame import Frame

CONFIDENCE = 8.0
"""Logit of a pixel that a drawn mask holds, about that of a sure pixel in a decoder's own answer."""


def draw_mask(mask: np.ndarray, frame: Frame, side: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A slice's mask (height, width) -> (1, 1, side, side) float in [0, 1] in the encoder's input frame."""
    return torch.from_numpy(on_cells(mask[None], frame, side))[None].to(device)


def mask_to_logits(drawn: torch.Tensor) -> torch.Tensor:
    """A drawn mask in [0, 1] -> logits of the same shape, for decoders that expect an earlier answer."""
    return (drawn * 2 - 1) * CONFIDENCE


def logits_to_pixels(logits: torch.Tensor, frame: Frame) -> np.ndarray:
    """Low-resolution logits (M, S, S) of the whole input -> (M, height, width) float32 of the slice."""
    return frame.logits_to_slice(logits[None].float().cpu())[0].numpy()


def on_cells(pixels: np.ndarray, frame: Frame, side: int) -> np.ndarray:
    """Values of slices' pixels (n, height, width) -> (n, side, side) float32 in the encoder's input frame, averaged;
    0 outside the slice."""
    drawn = frame.to_input(torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))[:, None])
    small = F.interpolate(drawn, (side, side), mode="bilinear", align_corners=False, antialias=True)
    cells: np.ndarray = small[:, 0].numpy()
    return cells
