"""The notebooks in examples/ run from top to bottom, here: a kernel for each would import everything anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    backend = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 2
    known: dict[str, Any] = {"__name__": "__main__"}
    try:
        for number, cell in enumerate(cells, 1):
            exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), known)
    finally:
        if "stack" in known:  # of a notebook that failed while its server runs
            known["stack"].close()
