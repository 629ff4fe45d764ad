from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_processes import Processes

from ssmsam.cluster import Study, studies_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[Processes]:
    """A scheduler with one worker, for all tests that leave both as they were."""
    running = Processes()
    try:
        running.worker()
        yield running
    finally:
        running.stop()


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
