"""The figures of a recorded result, drawn from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssmsam_research.figures.examples import draw_click_comparison, draw_click_curves
from ssmsam_research.figures.fewshot_examples import draw_examples
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.protocols.active_run import draw_active
from ssmsam_research.protocols.fewshot_run import draw_fewshot

DRAWN = ("clicks", "complete", "crosspatient", "active")


def read_result(path: Path) -> dict[str, Any]:
    """A result file. Raises ValueError when it is none, or of a protocol without figures."""
    try:
        result = json.loads(path.read_text())
        protocol = result["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of the benchmark program ({error!r})") from error
    if protocol not in DRAWN:
        raise ValueError(f"{path} is a result of {protocol}; there are figures of {', '.join(DRAWN)}")
    return result


def draw_recorded(folder: Path, result: dict[str, Any], queries: LabelledSet | None = None) -> list[Path]:
    """All figures that a result holds; examples of few-shot runs only with the images of ``queries``. The files."""
    data = result["manifest"]["data"]
    if result["protocol"] == "clicks" and "methods" in result:
        return draw_click_comparison(folder, result)
    if result["protocol"] == "clicks":
        return draw_click_curves(folder, result, data["set"])
    if result["protocol"] == "active":
        return draw_active(folder, result, data["set"])
    drawn = draw_fewshot(folder, result, data["queries"]["set"])
    return drawn + (draw_examples(folder, result, queries) if queries else [])
