from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sample_cases import CT, MR, SAMPLES, Truth, copy_of
from serving import Server, free_port

from ssmsam.cli.pacs import INSTALL, Orthanc, is_installed, running_orthanc
from ssmsam.cli.samples import write_sample_studies
from ssmsam.reading import read_volume
from ssmsam.volume.volume import reoriented
from ssmsam.volume.writing import write_volume
from ssmsam_research.synthetic.samples import CASES

ORIENTATIONS = ("RAS", "LAS", "LPI")
SERIES = "ct_series"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT and an MR, the CT again in three other storage orders, and as a folder of DICOM files."""
    folder = tmp_path_factory.mktemp("studies")
    for name in (CT, MR):
        copy_of(name, folder)
    volume = read_volume(SAMPLES / "abdomen" / f"{CT}.nii.gz")
    for codes in ORIENTATIONS:
        write_volume(reoriented(volume, codes), folder / f"{CT}_{codes}.nii.gz")
    shutil.copytree(SAMPLES / "abdomen_dicom" / CT, folder / SERIES)
    return folder


@pytest.fixture(scope="session")
def server(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for most tests. It embeds nothing by itself, so that encoder calls can be counted."""
    running = Server(studies=studies, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers().wait_until_warm()
    finally:
        running.kill()


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Case -> its DICOM files, as they are in the archive."""
    folders = write_sample_studies(SAMPLES, tmp_path_factory.mktemp("series"))
    return {case.name: folder for case, folder in zip(CASES, folders, strict=True)}


@pytest.fixture(scope="session")
def orthanc(series: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A real DICOM archive with the sample studies, for all tests that only add segmentations to it."""
    if not is_installed():
        pytest.skip(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), port=free_port()) as running:
        for folder in series.values():
            running.upload(sorted(folder.glob("*.dcm")))
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start further servers; they end with the test."""
    running: list[Server] = []

    def start(*, studies: Path | str, home: Path | None = None, **options: dict[str, str]) -> Server:
        running.append(Server(studies=studies, home=home or tmp_path / "home", **options))
        return running[-1]

    try:
        yield start
    finally:
        for one in running:
            one.kill()


@pytest.fixture(scope="session")
def ct() -> Truth:
    return Truth.of(CT)


@pytest.fixture(scope="session")
def mr() -> Truth:
    return Truth.of(MR)
