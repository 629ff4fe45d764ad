"""Between the pixels of a slice and the square input of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

OUTSIDE = -30.0
"""The logit of pixels that a window does not show."""


@dataclass(frozen=True)
class Window:
    """A part of a slice, in its pixels: the first row and column, and how many."""

    y: int
    x: int
    height: int
    width: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """The same as an index of (..., height, width)."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    def holds(self, xy: np.ndarray) -> bool:
        """Whether all points (N, 2), as (x, y), are inside."""
        x, y = np.reshape(xy, (-1, 2)).T - np.array([[self.x], [self.y]]) + 0.5
        return bool(((x >= 0) & (x <= self.width) & (y >= 0) & (y <= self.height)).all())


@dataclass(frozen=True)
class Frame:
    """A slice of (height, width) pixels, or a window of it, drawn into the top-left of a (size, size) input, rest zero.

    The longer side **in millimetres** fills the input, so that pixels are square there even when the slice's are
    not (a sagittal view of thick axial slices). Points are (x, y) with whole numbers at pixel *centres* in both
    frames; resampling keeps pixel *areas* aligned (no half-pixel shift).
    """

    height: int
    width: int
    size: int
    pixel_mm: tuple[float, float] = (1.0, 1.0)
    """Millimetres per pixel along (y, x)."""
    mirrored: tuple[bool, bool] = (False, False)
    """Whether the slice is shown mirrored along (y, x): see :meth:`ssmsam.volume.geometry.Plane.mirrored`."""
    window: Window | None = None
    """The part of the slice that is shown, None for all of it."""

    @property
    def shown(self) -> Window:
        """What of the slice is shown."""
        return self.window or Window(0, 0, self.height, self.width)

    @property
    def resized(self) -> tuple[int, int]:
        """(rows, columns) of the input that the slice fills."""
        extent = self.shown.height * self.pixel_mm[0], self.shown.width * self.pixel_mm[1]
        rows, columns = (max(1, round(self.size * side / max(extent))) for side in extent)
        return rows, columns

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per slice pixel along (y, x)."""
        rows, columns = self.resized
        return rows / self.shown.height, columns / self.shown.width

    @property
    def input_mm(self) -> float:
        """Millimetres per pixel of the input."""
        return max(self.shown.height * self.pixel_mm[0], self.shown.width * self.pixel_mm[1]) / self.size

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, height, width) -> (B, C, size, size), float, antialiased when shrinking."""
        self._expect(images)
        images = images[(..., *self.shown.pixels)]
        if self.resized == tuple(images.shape[-2:]):
            drawn = images.float()
        else:
            drawn = F.interpolate(images.float(), self.resized, mode="bilinear", align_corners=False, antialias=True)
        rows, columns = self.resized
        return F.pad(self.mirror(drawn), (0, self.size - columns, 0, self.size - rows))

    def mirror(self, images: torch.Tensor) -> torch.Tensor:
        """(..., y, x) between the slice's order of pixels and the input's: its own inverse."""
        return images.flip([axis for axis, turned in zip((-2, -1), self.mirrored, strict=True) if turned])

    def points_to_input(self, xy: np.ndarray) -> np.ndarray:
        """Points (N, 2) as (x, y) in slice pixels -> the same in input pixels."""
        scale_y, scale_x = self.scale
        inside = np.asarray(xy, dtype=np.float64).reshape(-1, 2) - (self.shown.x, self.shown.y)
        return self._mirror_points((inside + 0.5) * (scale_x, scale_y) - 0.5)

    def points_to_slice(self, xy: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`points_to_input`."""
        scale_y, scale_x = self.scale
        shown = self._mirror_points(np.asarray(xy, dtype=np.float64).reshape(-1, 2))
        inside: np.ndarray = (shown + 0.5) / (scale_x, scale_y) - 0.5
        return inside + np.array([self.shown.x, self.shown.y])

    def box_to_input(self, box: tuple[float, float, float, float]) -> np.ndarray:
        """A box (x0, y0, x1, y1) in slice pixels -> its first and last corner (2, 2) in input pixels."""
        return np.sort(self.points_to_input(np.reshape(box, (2, 2))), axis=0)

    def logits_to_slice(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, h, w) that cover the whole input at any resolution -> (B, C, height, width).

        Pixels outside the window are :data:`OUTSIDE`.
        """
        full = F.interpolate(logits.float(), (self.size, self.size), mode="bilinear", align_corners=False)
        rows, columns = self.resized
        shape, drawn = (self.shown.height, self.shown.width), self.mirror(full[..., :rows, :columns])
        inside = F.interpolate(drawn, shape, mode="bilinear", align_corners=False)
        if self.window is None:
            return inside
        pixels = inside.new_full((*inside.shape[:2], self.height, self.width), OUTSIDE)
        pixels[(..., *self.window.pixels)] = inside
        return pixels

    def _mirror_points(self, xy: np.ndarray) -> np.ndarray:
        """Points (N, 2) in input pixels between both orders: its own inverse."""
        rows, columns = self.resized
        turned_y, turned_x = self.mirrored
        x, y = xy.T
        return np.stack([columns - 1 - x if turned_x else x, rows - 1 - y if turned_y else y], axis=1)

    def _expect(self, images: torch.Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape[-2:]) != (self.height, self.width):
            raise ValueError(f"expected images (B, C, {self.height}, {self.width}), got {tuple(images.shape)}")


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
    return np.asarray(small[:, 0].numpy())
