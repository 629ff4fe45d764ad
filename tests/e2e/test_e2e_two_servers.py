"""Two servers on one folder of studies: what one takes the other knows, whoever is killed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, LABELS, Truth, copy_of
from serving import Server
from viewers import TIMEOUT, slicer, submit_slices

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

ORGAN = "liver"


def annotated(server: Server) -> set[int]:
    found = requests.get(f"{server.url}/datastore/annotations", params={"image": CT}, timeout=TIMEOUT).json()
    return set(found["partial"]["slices"].get(ORGAN, {"annotated": []})["annotated"])


@pytest.mark.faults
def test_what_one_takes_the_other_knows(start: Callable[..., Server], ct: Truth, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    copy_of(CT, studies)
    shared = {"precompute": "false", "store": str(tmp_path / "store"), "heads": str(tmp_path / "heads")}
    both = [start(studies=studies, home=tmp_path / name, conf=shared) for name in ("one", "two")]
    for server in both:
        server.wait_until_it_answers()
    shows = [int(index) for index in np.flatnonzero(ct.mask(ORGAN).any(axis=(1, 2)))[::2][:12]]

    def submit(turn: int) -> None:
        drawn = np.zeros(ct.array.shape, np.uint8)
        drawn[shows[turn]] = ct.array[shows[turn]] == LABELS[ORGAN]
        write_volume(Volume(drawn, ct.grid.affine), tmp_path / f"{turn}.nii.gz")
        submit_slices(both[turn % 2].url, CT, tmp_path / f"{turn}.nii.gz", {ORGAN: 1}, [shows[turn]])

    with ThreadPoolExecutor(4) as readers:
        list(readers.map(submit, range(8)))
    assert annotated(both[0]) == annotated(both[1]) == set(shows[:8])

    slicer(both[0].url, "fewshot", CT, labels=[ORGAN], wait=True)
    names: list[Any] = [requests.get(f"{server.url}/checkpoints", timeout=TIMEOUT).json()["active"] for server in both]
    assert names[0] and names[0] == names[1]

    both[0].kill()
    submit(9)
    assert annotated(both[1]) == {*shows[:8], shows[9]}
    again = start(studies=studies, home=tmp_path / "one", conf=shared).wait_until_it_answers()
    assert annotated(again) == {*shows[:8], shows[9]}
