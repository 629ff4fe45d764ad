from __future__ import annotations

from pathlib import Path

import pytest

from ssmsam.cluster import Study, studies_of


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Eight files that look like volumes by name; the last is empty."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(8):
        (folder / f"study{number}.nii.gz").write_bytes(b"x" * (7 * (7 - number)))
    return folder


@pytest.fixture
def studies(files: Path) -> list[Study]:
    return studies_of(files)
