"""How training went: each loss over time, from the log that training writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


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
