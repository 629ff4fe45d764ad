"""The pictures of a finished clicks run: curves of all labels, and its best, middling and worst slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssmsam.cli.pictures import Panel, draw_overlays
from ssmsam.volume.geometry import Plane
from ssmsam_research.figures.curves import draw_curves
from ssmsam_research.metrics import dice
from ssmsam_research.model_choice import PromptedModel, PromptedTarget
from ssmsam_research.protocols.click_run import ClickRun
from ssmsam_research.protocols.clicks import click_name, click_through

_PLACES = {"best": 1.0, "middling": 0.5, "worst": 0.0}
_CLICKS = 5
"""Of an example; the record that chooses it has the Dice after so many."""


def draw_figures(folder: Path, run: ClickRun, result: dict[str, Any]) -> list[Path]:
    """Curves for each task, and overlays of example slices after five clicks. Returns the files."""
    name = run.labelled_set.name
    drawn = draw_click_curves(folder, result, name)
    title = f"{name}: filled is the model after {_CLICKS} clicks, dashed the truth"
    return [*drawn, draw_overlays(folder / "examples.png", example_panels(run, result), title=title)]


def draw_click_curves(folder: Path, result: dict[str, Any], name: str) -> list[Path]:
    """Dice by clicks, one picture for each task. Returns the files."""
    return [
        draw_curves(folder / f"{task}_curves.png", curves(result, task), title=f"{name}: Dice of a {task} by clicks")
        for task in ("slice", "volume")
        if task in result["tasks"]
    ]


def draw_click_comparison(folder: Path, result: dict[str, Any]) -> list[Path]:
    """Dice by clicks of a comparison, mean over sets, a line for each method that was clicked. Returns the files."""
    drawn = []
    for task in ("slice", "volume"):
        lines = {
            method: {
                int(p.split()[0]): cell["mean"] for p, cell in found["over_sets"].get(task, {}).items() if p != "box"
            }
            for method, found in result["methods"].items()
        }
        lines = {method: line for method, line in lines.items() if line}
        if lines:
            drawn.append(draw_curves(folder / f"{task}_curves.png", lines, title=f"Dice of a {task} by clicks"))
    return drawn


def curves(result: dict[str, Any], task: str) -> dict[str, dict[int, float]]:
    """{label or "mean": {clicks: Dice}} of a result's task, without the box."""
    by_clicks = {int(prompt.split()[0]): found for prompt, found in result["tasks"][task].items() if prompt != "box"}
    labels = next(iter(by_clicks.values()))["per_label"]
    lines = {label: {n: found["per_label"][label]["mean"] for n, found in by_clicks.items()} for label in labels}
    return {**lines, "mean": {n: found["mean_dice"] for n, found in by_clicks.items()}}


def example_panels(run: ClickRun, result: dict[str, Any]) -> list[Panel]:
    """The slices with the best, the median and the worst Dice after five clicks, segmented again to be drawn."""
    records = [
        {"case": case["case"], **record}
        for case in result["per_case"]
        for record in case["records"]
        if record["task"] == "slice"
    ]
    records.sort(key=lambda record: record["dice"][click_name(_CLICKS)])
    model = PromptedModel.load(run.model)
    chosen = {place: records[round(share * (len(records) - 1))] for place, share in _PLACES.items()}
    return [_panel(run, model, record, place) for place, record in chosen.items()]


def _panel(run: ClickRun, model: PromptedModel, record: dict[str, Any], place: str) -> Panel:
    case = next(case for case in run.labelled_set.cases if case.name == record["case"])
    volume, labels = case.read()
    embeddings = model.embedder.open(volume)
    index, pixel_mm = record["slice"], Plane(0).pixel_mm(volume.grid)
    truth = dict(run.labelled_set.targets(labels))[record["label"]][index]
    target = PromptedTarget(embeddings, model.decoder)
    _, clicks = click_through(
        truth, lambda clicks: target.slice_mask(index, clicks, None), limit=_CLICKS, pixel_mm=pixel_mm
    )
    mask = PromptedTarget(embeddings, model.decoder)
    drawn = [mask.slice_mask(index, clicks[:n], None) for n in range(1, len(clicks) + 1)][-1]
    title = f"{place}: {record['label']}, {case.name}, slice {index}\nDice {dice(drawn, truth):.1f} %"
    image = embeddings.scale.apply(volume.array[index])
    return Panel(title, image, drawn, truth=truth, clicks=clicks, pixel_mm=pixel_mm)
