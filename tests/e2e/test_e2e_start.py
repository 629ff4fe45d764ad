"""Starting, stopping, and what survives both."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from sample_cases import CT, Truth, copy_of
from serving import Server
from viewers import slicer

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

Start = Callable[..., Server]


@pytest.fixture
def one_study(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    copy_of(CT, folder)
    return folder


def test_a_wrong_configuration_stops_the_start(start: Start, one_study: Path) -> None:
    server = start(studies=one_study, conf={"models": "sam_2d,sam_4d"})
    assert server.ended_with() == 2
    last = server.said().strip().splitlines()[-1]
    assert last.startswith("ssmsam does not start: --conf models")
    assert "sam_4d" in last
    assert "sam_3d" in last
    assert "Traceback" not in server.said()


@pytest.mark.faults
def test_embeddings_survive_a_kill_and_a_restart(start: Start, one_study: Path, tmp_path: Path, ct: Truth) -> None:
    home = tmp_path / "home"
    count = ct.grid.shape[0]
    click = ct.click("liver")

    first = start(studies=one_study, home=home).wait_until_it_answers()
    requests.post(f"{first.url}/activelearning/first", json={}, timeout=60).raise_for_status()
    # what is done has reached the disk, which what is encoded has not yet
    first.wait_for(lambda info: info["ssmsam"]["embedding"]["done"] >= 5)
    made = first.info()["ssmsam"]["embedding"]["done"]
    assert made < count, "killed too late to be in the middle"
    first.kill()

    second = start(studies=one_study, home=home).wait_until_it_answers()
    answer = slicer(second.url, "sam_3d", CT, label="liver", foreground=[click])
    assert answer.mask[click[2], click[1], click[0]] == 1
    second.wait_for(lambda info: info["ssmsam"]["embedding"]["done"] == count)
    encoded = second.info()["ssmsam"]["encoded_slices"]
    assert encoded <= count - made + 1, "what the killed server had finished was made again"
    assert second.stop() in (0, -signal.SIGTERM)  # after its clean end, uvicorn passes the signal on
    assert "Application shutdown complete" in second.said()

    allowed = {"ct_01.nii.gz", "datastore_v2.json", ".lock", "labels", "labels/final", "labels/original"}
    written = {path.relative_to(one_study) for path in one_study.rglob("*")}
    assert {str(path) for path in written if path.parts[0] != ".annotations"} <= allowed


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a thousand tiny images and one real one."""
    folder = tmp_path_factory.mktemp("many")
    copy_of(CT, folder)
    tiny = folder / "case_0000.nii.gz"
    write_volume(Volume(np.zeros((2, 8, 8), np.int16), np.eye(4), "CT"), tiny)
    for number in range(1, 1000):
        os.link(tiny, folder / f"case_{number:04d}.nii.gz")
    conf = {"precompute": "no", "models": "sam_2d"}
    server = Server(studies=folder, home=tmp_path_factory.mktemp("home"), conf=conf, cold=True)
    try:
        yield server.wait_until_it_answers().wait_until_warm()
    finally:
        server.kill()


def test_the_first_click_is_not_slower_than_the_next(crowded: Server, ct: Truth) -> None:
    i, j, k = ct.click("liver")
    seconds = []
    for step in range(5):  # each on a slice of its own, so that each needs the encoder
        started = time.perf_counter()
        slicer(crowded.url, "sam_2d", CT, label="liver", foreground=[[i, j, k + step]], slice=k + step)
        seconds.append(time.perf_counter() - started)
    reading = 1.0  # the first click also reads the file; without the warm-up it takes several seconds more
    assert seconds[0] < reading + 3 * statistics.median(seconds[1:]), seconds


def test_info_stays_fast_with_a_thousand_images(crowded: Server) -> None:
    info = crowded.info()
    assert info["datastore"]["total"] == 1001
    assert list(info["models"]) == ["sam_2d"]
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        crowded.info()
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.1
