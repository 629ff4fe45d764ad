"""Pictures of results: Dice against clicks or annotated slices, and masks drawn over their slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ssmsam_research.evaluation.annotator import Click

TRUTH, MASK = "#ffd23f", "#ff3b6b"
POSITIVE, NEGATIVE = "#3ddc84", "#4aa3ff"
_MEAN_STYLE = {"color": "black", "linestyle": "solid", "linewidth": 3.0, "zorder": 3, "marker": "o", "markersize": 6}


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice with what is drawn over it. Masks and image are (height, width), the image in [0, 1]."""

    title: str
    image: np.ndarray
    mask: np.ndarray
    truth: np.ndarray | None = None
    clicks: Sequence[Click] = ()
    box: tuple[float, float, float, float] | None = None
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
    _save(figure, path)
    with Image.open(path) as drawn:  # grey and a few colours: a palette makes the file less than half as large
        small = drawn.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)
    return path


def draw_curves(
    path: Path,
    curves: Mapping[str, Mapping[int, float]],
    *,
    title: str,
    x_label: str = "clicks",
    bands: Mapping[str, Mapping[int, Sequence[float]]] | None = None,
) -> Path:
    """Lines of Dice against a number into a PNG. ``curves`` maps a name to {number: Dice}; "mean" is drawn bold.
    ``bands`` maps a name to {number: (low, high)}, an interval around its line."""
    if not curves:
        raise ValueError("there is nothing to draw")
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        bold = _MEAN_STYLE if name == "mean" else {}
        axes.plot(list(points), list(points.values()), label=name, **{**_line_style(number), **bold})
        if band := (bands or {}).get(name):
            low, high = zip(*band.values(), strict=True)
            axes.fill_between(list(band), low, high, color=axes.lines[-1].get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=x_label, ylabel="Dice (%)", title=title, ylim=(0, 100))
    axes.set_xticks(sorted({n for points in curves.values() for n in points}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _save(figure, path)


def draw_seconds(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Path:
    """Dice against seconds, on a logarithmic axis, into a PNG. ``curves`` maps a name to points (seconds, Dice)."""
    if not curves:
        raise ValueError("there is nothing to draw")
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        seconds = [max(second, 1e-3) for second, _ in points]  # records round to milliseconds
        axes.plot(seconds, [dice for _, dice in points], label=name, **_line_style(number))
    axes.set(xlabel="seconds for a mask, adaptation included", ylabel="Dice (%)", title=title, xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _save(figure, path)


def draw_reliability(path: Path, diagrams: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> Path:
    """Expectation against truth into a PNG. ``diagrams`` maps a name to rows of (count, mean expected, mean true).

    The larger a point, the more there is in its bin.
    """
    if not diagrams:
        raise ValueError("there is nothing to draw")
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="dashed", linewidth=1.0)
    for name, rows in diagrams.items():
        expected, true = [row[1] for row in rows], [row[2] for row in rows]
        (line,) = axes.plot(expected, true, linewidth=1.0, label=name)
        share = np.array([row[0] for row in rows]) / max(sum(row[0] for row in rows), 1)
        axes.scatter(expected, true, s=15 + 285 * share, color=line.get_color(), alpha=0.7)
    axes.set(xlabel="expected", ylabel="true", title=title, xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def _line_style(number: int) -> dict[str, Any]:
    """After ten lines colours come again, dashed. Later markers are smaller, so that what they cover can be seen."""
    return {
        "color": f"C{number % 10}",
        "linestyle": "solid" if number < 10 else "dashed",
        "linewidth": 1.3,
        "marker": "osD^v<>PX*"[number % 10],
        "markersize": max(9 - number, 4),
    }


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
    if panel.box is not None:
        x0, y0, x1, y1 = panel.box
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=POSITIVE, linewidth=1.2)
    axes.set_title(panel.title, fontsize=fontsize)
    axes.set_axis_off()


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
