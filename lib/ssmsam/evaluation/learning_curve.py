"""How training went: the loss of each prompting round over time, from the log that training writes."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def read_log(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training seconds (N,) and the losses of all rounds (N, rounds) of a training log (.jsonl).

    A round that was not played in a part of the training is not-a-number there. What a resumed run did over again
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
    losses = zip_longest(*(line["loss_by_round"] for line in kept), fillvalue=np.nan)
    return np.array([line["seconds"] for line in kept]), np.array(list(losses)).T


def draw_learning_curve(path: Path, log: Path) -> Path:
    """Loss against minutes into a PNG, one line for each round."""
    seconds, losses = read_log(log)
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, values in enumerate(losses.T):
        axes.plot(seconds / 60, values, label="first prompt" if number == 0 else f"after correction {number}")
    axes.set(xlabel="minutes of training", ylabel="training loss", title=log.stem, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
