"""Requests do not wait for each other, and do not mix."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from sample_cases import CT, MR, Truth
from serving import Server
from viewers import slicer

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


def info_seconds(server: Server) -> float:
    start = time.perf_counter()
    requests.get(f"{server.url}/info/", timeout=30).raise_for_status()
    return time.perf_counter() - start


@pytest.fixture
def long_work(studies: Path, tmp_path: Path) -> Callable[[Server], float]:
    """Points on every second slice of half a volume that no server has seen: seconds of work, measured."""
    volume = read_volume(studies / f"{CT}.nii.gz")
    array = volume.array[: len(volume.array) // 2].copy()
    array[0] += np.random.default_rng().integers(1, 1000, array[0].shape, dtype=array.dtype)
    file = tmp_path / "never_seen.nii.gz"
    write_volume(Volume(array, volume.affine, volume.modality), file)
    params = {"foreground": [[80, 80, k] for k in range(0, len(array), 2)], "label": tmp_path.name}

    def work(server: Server) -> float:
        started = time.perf_counter()
        with file.open("rb") as opened:
            sent = {"params": (None, json.dumps(params)), "file": (file.name, opened)}
            requests.post(f"{server.url}/infer/sam_3d", files=sent, timeout=300).raise_for_status()
        return time.perf_counter() - started

    return work


def test_info_answers_during_an_inference(server: Server, long_work: Callable[[Server], float]) -> None:
    times = []
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(long_work, server)
        while not work.done():
            times.append(info_seconds(server))
            time.sleep(0.02)
        seconds = work.result()
    assert len(times) > 10, "the inference was over too soon to say anything"
    assert statistics.median(times) < 0.1
    assert max(times) < seconds / 2, f"of {seconds:.1f} s, one request waited {max(times):.1f} s"


def test_two_clients_on_two_images_at_once(server: Server, ct: Truth, mr: Truth) -> None:
    jobs = {
        ("reader-a", CT, "liver"): ct.click("liver"),
        ("reader-b", MR, "liver"): mr.click("liver"),
        ("reader-a", MR, "spleen"): mr.click("spleen"),
        ("reader-b", CT, "spleen"): ct.click("spleen"),
    }

    def run(job: tuple[str, str, str], model: str) -> np.ndarray:
        client, image, label = job
        k = jobs[job][2]
        return slicer(
            server.url, model, image, label=label, foreground=[jobs[job]], slice=k, client_id=client, reset_state=True
        ).mask

    for model in ("sam_2d", "sam_3d"):
        alone = {job: run(job, model) for job in jobs}
        with ThreadPoolExecutor(len(jobs)) as pool:
            together = dict(zip(jobs, pool.map(lambda job, model=model: run(job, model), jobs), strict=True))
        for job, mask in together.items():
            np.testing.assert_array_equal(mask, alone[job], err_msg=str(job))


def test_a_click_does_not_wait_for_another_user_s_volume(
    server: Server, ct: Truth, long_work: Callable[[Server], float]
) -> None:
    i, j, k = ct.click("liver")
    slicer(server.url, "sam_2d", CT, foreground=[[i, j, k]], slice=k, client_id="quick")
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(long_work, server)
        time.sleep(0.5)
        slicer(server.url, "sam_2d", CT, foreground=[[i, j, k], [i + 1, j, k]], slice=k, client_id="quick")
        assert not work.done(), "the click came back only when the other user's volume was done"
        work.result()
