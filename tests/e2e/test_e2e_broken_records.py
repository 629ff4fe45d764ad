"""The server is killed while it takes submissions, or finds its records damaged: what it answered is there again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
from sample_cases import CT, MR, Truth, copy_of
from serving import Server
from viewers import TIMEOUT, stored_label, submit_slices

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

Start = Callable[..., Server]
KILLS = 12
ALONE = {"precompute": "false"}
"""Nothing else is at work than what is asked for."""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in (CT, MR):
        copy_of(name, folder)
    return folder


@pytest.fixture
def masks(ct: Truth, mr: Truth, tmp_path: Path) -> dict[str, Path]:
    """Image -> a mask of its liver."""
    found = {}
    for image, truth in ((CT, ct), (MR, mr)):
        found[image] = tmp_path / f"{image}_liver.nii.gz"
        write_volume(Volume(truth.mask("liver").astype(np.uint8), truth.grid.affine), found[image])
    return found


def annotated(url: str, image: str) -> set[int]:
    known = requests.get(f"{url}/datastore/annotations", params={"image": image}, timeout=TIMEOUT)
    assert known.status_code == 200, known.text
    slices = known.json()["partial"]["slices"].get("liver", {})
    return {*slices.get("annotated", ()), *slices.get("empty", ())}


def submit_until_it_dies(url: str, image: str, mask: Path, left: list[int], answered: set[int]) -> None:
    try:
        while left:
            submit_slices(url, image, mask, {"liver": 1}, [left[-1]], client=f"reader-{image}")
            answered.add(left.pop())
    except requests.RequestException:
        pass


def test_killed_while_it_takes_submissions(
    start: Start, studies: Path, masks: dict[str, Path], ct: Truth, mr: Truth
) -> None:
    """Two clients at once; whatever either of them got an answer to is there after the next start, and right."""
    truths, chance = {CT: ct, MR: mr}, random.Random(0)
    answered: dict[str, set[int]] = {image: set() for image in truths}
    left = {image: list(range(truth.grid.shape[0])) for image, truth in truths.items()}
    asked = {image: set(slices) for image, slices in left.items()}
    interrupted = 0
    server = start(studies=studies, conf=ALONE).wait_until_it_answers()
    for _ in range(KILLS):
        clients = [
            threading.Thread(target=submit_until_it_dies, args=(server.url, image, masks[image], left[image], slices))
            for image, slices in answered.items()
        ]
        for client in clients:
            client.start()
        time.sleep(chance.uniform(0.05, 1.5))
        interrupted += all(client.is_alive() for client in clients)
        server.kill()
        for client in clients:
            client.join()
        server = start(studies=studies, conf=ALONE).wait_until_it_answers()
        for image, slices in answered.items():
            known = annotated(server.url, image)
            assert slices <= known <= asked[image], "what was answered is kept"
            assert len(known - slices) <= KILLS, "and what was under way, at most"
            if not known:
                continue
            mask, values = stored_label(server.url, image, "partial")
            wrong = [k for k in known if not np.array_equal(mask[k] == values["liver"], truths[image].mask("liver")[k])]
            assert not wrong, "the label file is what is annotated"
        for image in answered:  # the same slices once more
            left[image] = left[image] or sorted(asked[image])
    assert interrupted >= KILLS / 2, "else little was interrupted"
    assert "Traceback" not in server.said()


@pytest.mark.parametrize("damage", ["emptied", "cut", "removed"])
def test_records_that_are_damaged_between_two_starts(
    damage: str, start: Start, studies: Path, masks: dict[str, Path], ct: Truth
) -> None:
    server = start(studies=studies, conf=ALONE).wait_until_it_answers()
    shown = np.flatnonzero(ct.mask("liver").any(axis=(1, 2)))[:3].tolist()
    for k in shown:
        submit_slices(server.url, CT, masks[CT], {"liver": 1}, [k])
    server.kill()
    records = [studies / "datastore_v2.json", *studies.glob(".annotations/*/annotations.json")]
    records += studies.glob(".annotations/*/work.json")
    assert len(records) >= 3
    for record in records:
        whole = record.read_bytes()
        record.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
        if damage == "removed":
            record.unlink()
    server = start(studies=studies, conf=ALONE).wait_until_it_answers()
    assert annotated(server.url, CT) == set(shown)
    mask, values = stored_label(server.url, CT, "partial")
    assert np.array_equal(mask[shown] == values["liver"], ct.mask("liver")[shown])
    if damage != "removed":
        assert list(studies.glob("datastore_v2.json.damaged-*")), "the damaged one is kept"
        assert "damaged" in server.said()
    submit_slices(server.url, CT, masks[CT], {"liver": 1}, [shown[-1] + 1])
    assert annotated(server.url, CT) == {*shown, shown[-1] + 1}
