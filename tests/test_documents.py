"""What the site's own build does not see: documents that are read where they lie."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ_IN_PLACE = [
    *ROOT.glob("*.md"),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "sample-datasets")),
    *(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts),
]


@pytest.mark.parametrize("path", READ_IN_PLACE, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
