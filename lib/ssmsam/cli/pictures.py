"""Masks drawn over their slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ssmsam.cli.annotator import Click

TRUTH, MASK = "#ffd23f", "#ff3b6b"
POSITIVE, NEGATIVE = "#3ddc84", "#4aa3ff"


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice with what is drawn over it. Masks and image are (height, width), the image in [0, 1]."""

    title: str
    image: np.ndarray
    mask: np.ndarray
    truth: np.ndarray | None = None
    clicks: Sequence[Click] = ()
    pixel_mm: tuple[float, float] = (1.0, 1.0)
    """Millimetres per pixel along (y, x): thick slices are drawn as thick as they are."""
    others: Sequence[np.ndarray] = field(default_factory=tuple)
    """Further masks of the same slice, filled in other colours."""


def draw_overlays(path: Path, panels: Sequence[Panel], *, columns: int = 3, side: float = 4.0, title: str = "") -> Path:
    """Panels side by side into a PNG: the mask filled and outlined, the truth as a dashed line, clicks as crosses.

    ``side`` is the width of a panel in inches.
    """
    if not panels:
        raise ValueError("there is nothing to draw")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(side * columns, (side + 0.4) * rows + (0.6 if title else 0.2)), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, number), panel, fontsize=9 if side >= 4 else 7)
    if title:
        figure.suptitle(title, fontsize=12 if side >= 4 else 9)
    save_figure(figure, path)
    with Image.open(path) as drawn:  # grey and a few colours: a palette makes the file less than half as large
        small = drawn.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)
    return path


def _draw_panel(axes, panel: Panel, *, fontsize: float) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes are untyped
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, aspect=panel.pixel_mm[0] / panel.pixel_mm[1])
    for number, mask in enumerate((panel.mask, *panel.others)):
        colour = MASK if number == 0 else f"C{number - 1}"
        if mask.any():
            axes.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.35)
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4)
    if panel.truth is not None and panel.truth.any():
        axes.contour(panel.truth, levels=[0.5], colors=[TRUTH], linewidths=1.2, linestyles="dashed")
    for positive, colour in ((True, POSITIVE), (False, NEGATIVE)):
        points = [(click.x, click.y) for click in panel.clicks if click.positive == positive]
        if points:
            axes.scatter(
                *zip(*points, strict=True), marker="P" if positive else "X", s=45, c=colour, edgecolors="black"
            )

    axes.set_title(panel.title, fontsize=fontsize)
    axes.set_axis_off()


def save_figure(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
