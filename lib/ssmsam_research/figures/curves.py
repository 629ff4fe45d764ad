"""Pictures of results: Dice against clicks, annotated slices or seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssmsam.cli.pictures import save_figure

_MEAN_STYLE = {"color": "black", "linestyle": "solid", "linewidth": 3.0, "zorder": 3, "marker": "o", "markersize": 6}


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
    return save_figure(figure, path)


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
    return save_figure(figure, path)


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
    return save_figure(figure, path)


def _line_style(number: int) -> dict[str, Any]:
    """After ten lines colours come again, dashed. Later markers are smaller, so that what they cover can be seen."""
    return {
        "color": f"C{number % 10}",
        "linestyle": "solid" if number < 10 else "dashed",
        "linewidth": 1.3,
        "marker": "osD^v<>PX*"[number % 10],
        "markersize": max(9 - number, 4),
    }


def read_log(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Training seconds (N,) and each loss (N,) by name of a training log (.jsonl).

    Where a loss was not taken it is not-a-number. What a resumed run did over again
    counts once, the last time. Raises ValueError for an empty log.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    kept: list[dict] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    if not kept:
        raise ValueError(f"{path} holds no training step yet")
    found = [_by_name(line) for line in kept]
    names = sorted({name for losses in found for name in losses})
    seconds = np.array([line["seconds"] for line in kept])
    return seconds, {name: np.array([losses.get(name, np.nan) for losses in found]) for name in names}


def _by_name(line: dict) -> dict[str, float]:
    """The losses of a line; earlier logs only numbered the rounds of prompting."""
    if "loss" in line:
        return dict(line["loss"])
    return {f"round {number}": loss for number, loss in enumerate(line["loss_by_round"], 1)}


def draw_learning_curve(path: Path, log: Path) -> Path:
    """Loss against minutes into a PNG, one line for each loss."""
    seconds, losses = read_log(log)
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in losses.items():
        axes.plot(seconds / 60, values, label=name)
    axes.set(xlabel="minutes of training", ylabel="training loss", title=log.stem, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
