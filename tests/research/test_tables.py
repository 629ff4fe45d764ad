"""Tables in documents are what the recorded results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssmsam_research.figures.tables import TABLES, rewrite, update

ROOT = Path(__file__).parents[2]


def test_documents_show_what_was_recorded() -> None:
    differ = [str(path.relative_to(ROOT)) for path in update(ROOT, check=True)]
    assert not differ, "python apps/benchmark.py tables"


def test_every_table_stands_somewhere_and_says_its_protocol() -> None:
    shown = [
        path.read_text() for pattern in ("README.md", "docs/**/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
    ]
    assert not [name for name in TABLES if not any(f"<!-- table {name} -->" in text for text in shown)]
    assert not [name for name, table in TABLES.items() if "rotocol" not in table.says]


def test_a_mean_is_over_patients_before_organs_and_comes_with_its_interval(tmp_path: Path) -> None:
    prompts = ("1 click", "3 clicks", "5 clicks", "10 clicks", "box")
    cases = [
        {
            "case": name,
            "records": [
                {"task": "slice", "label": label, "dice": dict.fromkeys(prompts, dice)} for label, dice in found
            ],
        }
        for name, found in (("a", [("liver", 90), ("liver", 70), ("spleen", 50)]), ("b", [("liver", 60)]))
    ]
    manifest = {"date": "2026-01-02T03:04:05", "weights_sha256": {"small": "0123456789"}}
    for name in ("ct", "mr"):
        (tmp_path / f"clicks_abdomen_{name}.json").write_text(json.dumps({"per_case": cases, "manifest": manifest}))
    rendered = TABLES["clicks-small"].render(tmp_path)
    assert "| Abdominal CT, 13 organs | 2 | 60.0 (" in rendered  # liver (80 + 60) / 2, spleen 50
    assert "`small` 01234567" in rendered


def test_model_cards_follow_one_template() -> None:
    for card in sorted((ROOT / "lib" / "ssmsam" / "models" / "weights").glob("*.md")):
        sections = [line for line in card.read_text().splitlines() if line.startswith("## ")]
        assert sections == ["## What it is", "## Data and terms", "## Recipe", "## Results", "## Known failures"], (
            card.name
        )


def test_only_what_stands_between_the_marks_changes() -> None:
    text = "before\n<!-- table one -->\nold\n<!-- end table -->\nafter\n"
    assert rewrite(text, str.upper) == "before\n<!-- table one -->\n\nONE\n<!-- end table -->\nafter\n"


def test_unknown_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- table nothing -->\n<!-- end table -->\n")
    with pytest.raises(ValueError, match="no table nothing"):
        update(tmp_path)
