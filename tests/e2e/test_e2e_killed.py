"""The server is killed while it works, or finds what it kept damaged: it starts again and answers as before."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, MR, Truth, copy_of
from serving import Server
from viewers import TIMEOUT, refused, slicer, submit_slices

from ssmsam.models.weights import entry, find_weights
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

Start = Callable[..., Server]
ROUNDS = 3
"""How often each kind of work is interrupted, each time a little later."""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in (CT, MR):
        copy_of(name, folder)
    return folder


def click(url: str, ct: Truth) -> np.ndarray:
    place = ct.click("liver")
    return slicer(url, "sam_2d", CT, foreground=[place], label="liver", reset_state=True).mask


def annotate(url: str, ct: Truth, folder: Path) -> Any:
    """Submit five slices of the liver; what is annotated then."""
    shown = np.flatnonzero(ct.mask("liver").any(axis=(1, 2)))
    wanted = [int(shown[round(share * (len(shown) - 1))]) for share in np.linspace(0, 1, 5)]
    write_volume(Volume(ct.mask("liver").astype(np.uint8), ct.grid.affine), folder / "liver.nii.gz")
    submit_slices(url, CT, folder / "liver.nii.gz", {"liver": 1}, wanted)
    return annotated(url)


def annotated(url: str) -> Any:
    known = requests.get(f"{url}/datastore/annotations", params={"image": CT}, timeout=TIMEOUT)
    assert known.status_code == 200, known.text
    return known.json()["partial"]["slices"]


def propose(url: str, **params: Any) -> np.ndarray:
    return slicer(url, "fewshot", CT, labels=["liver"], **params).mask


def test_killed_while_it_embeds(start: Start, studies: Path, ct: Truth, tmp_path: Path) -> None:
    expected = click(start(studies=studies, home=tmp_path / "untouched").wait_until_it_answers().url, ct)
    for number in range(ROUNDS):
        server = start(studies=studies).wait_until_it_answers()
        assert np.array_equal(click(server.url, ct), expected)
        time.sleep(0.3 * number)
        assert server.info()["ssmsam"]["embedding"]["done"] < ct.grid.shape[0]  # else nothing would be interrupted
        server.kill()
    server = start(studies=studies).wait_until_it_answers()
    assert np.array_equal(click(server.url, ct), expected)


@pytest.mark.parametrize("work", ["adaptation", "training"])
def test_killed_while_it_learns(start: Start, studies: Path, ct: Truth, tmp_path: Path, work: str) -> None:
    server = start(studies=studies, conf={"precompute": "false"}).wait_until_it_answers()
    known = annotate(server.url, ct, tmp_path)
    propose(server.url)
    for number in range(ROUNDS):
        if work == "adaptation":
            sent = {"labels": ["liver"], "adapt": True, "wait": True, "budget_s": 60}
            try:
                answer = requests.post(
                    f"{server.url}/infer/fewshot", params={"image": CT, "output": "json"}, timeout=1.0 + number,
                    files={"params": (None, json.dumps(sent))},
                )  # fmt: skip
                pytest.fail(f"it was over too soon, so that nothing was interrupted: {answer.text}")
            except requests.ReadTimeout:
                pass
        else:
            sent = {"steps": 500, "budget_s": 60}
            requests.post(f"{server.url}/train/fewshot_decoder", json=sent, timeout=TIMEOUT).raise_for_status()
            time.sleep(3 + 2 * number)
        server.kill()
        server = start(studies=studies, conf={"precompute": "false"}).wait_until_it_answers()
        assert annotated(server.url) == known
        heads = requests.get(f"{server.url}/heads/", timeout=TIMEOUT)
        assert heads.status_code == 200, heads.text
        assert propose(server.url)[ct.mask("liver").any(axis=(1, 2))].any()
        if work == "training":
            stats = server.info()["train_stats"].get("fewshot_decoder", {})
            assert stats.get("phase") in (None, "stopped", "done")


def test_damaged_embeddings_are_made_again(start: Start, studies: Path, ct: Truth, tmp_path: Path) -> None:
    home = tmp_path / "home"
    server = start(studies=studies, home=home).wait_until_it_answers()
    expected = click(server.url, ct)
    server.wait_for(lambda info: info["ssmsam"]["encoded_slices"] >= ct.grid.shape[0])
    server.kill()
    kept = [path for path in (home / "store").rglob("*") if path.is_file() and path.stat().st_size]
    assert kept
    drawn = random.Random(0)
    for path in kept:
        content = bytearray(path.read_bytes())
        for _ in range(20):
            content[drawn.randrange(len(content))] ^= 255
        path.write_bytes(content if drawn.random() < 0.7 else content[: len(content) // 2])
    server = start(studies=studies, home=home).wait_until_it_answers()
    assert np.array_equal(click(server.url, ct), expected)


def test_an_image_that_is_damaged_while_it_is_open(start: Start, studies: Path, ct: Truth) -> None:
    server = start(studies=studies, conf={"precompute": "false"}).wait_until_it_answers()
    expected, whole = click(server.url, ct), (studies / f"{CT}.nii.gz").read_bytes()
    (studies / f"{CT}.nii.gz").write_bytes(whole[: len(whole) // 3])
    status, detail = refused(server.url, "sam_2d", CT, foreground=[ct.click("liver")], label="liver")
    assert status == 422 and CT in str(detail)
    for strategy in ("first", "random", "next_slices"):
        offered = requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=TIMEOUT)
        assert offered.status_code == 200 and offered.json()["id"] == MR
    assert [one["image"] for one in server.info()["ssmsam"]["set_aside"]] == [CT]
    (studies / f"{CT}.nii.gz").write_bytes(whole)
    assert np.array_equal(click(server.url, ct), expected)
    assert server.info()["ssmsam"]["set_aside"] == []


def test_damaged_weights_are_not_used(start: Start, studies: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    damaged = Path(shutil.copy(find_weights("small"), weights / entry("small").file))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    server = start(studies=studies, conf={"encoder": "small", "weights": str(weights)})
    assert server.ended_with(seconds=120) != 0
    assert "sha256" in server.said() and "Traceback" not in server.said()
