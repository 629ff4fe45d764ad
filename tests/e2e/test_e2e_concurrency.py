"""Requests do not wait for each other, and do not mix."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import requests
from sample_cases import CT, MR, Truth
from serving import Server
from viewers import slicer


def info_seconds(server: Server) -> float:
    start = time.perf_counter()
    requests.get(f"{server.url}/info/", timeout=30).raise_for_status()
    return time.perf_counter() - start


def test_info_answers_during_an_inference(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    times = []
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(
            slicer, server.url, "sam_3d", f"{CT}_RAS", foreground=[[80, 80, 20]], reset_state=True, client_id="busy"
        )
        while not work.done():
            times.append(info_seconds(server))
        work.result()
    assert click
    assert len(times) > 3, "the inference was over too soon to say anything"
    assert statistics.median(times) < 0.1


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


def test_a_click_does_not_wait_for_another_user_s_volume(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    slicer(server.url, "sam_2d", CT, foreground=[click], slice=click[2], client_id="quick")
    with ThreadPoolExecutor(1) as pool:
        started = time.perf_counter()
        work = pool.submit(
            slicer, server.url, "sam_3d", f"{CT}_LAS", foreground=[[80, 80, 20]], reset_state=True, client_id="slow"
        )
        time.sleep(0.2)
        slicer(server.url, "sam_2d", CT, foreground=[click, click], slice=click[2], client_id="quick")
        clicked = time.perf_counter() - started
        was_busy = not work.done()
        work.result()
        whole = time.perf_counter() - started
    assert was_busy, f"the click took {clicked:.1f} s, the whole volume {whole:.1f} s"
