"""A disk that is really full: the server says so, keeps what it answered, and goes on when there is room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, Truth, copy_of
from serving import Server
from viewers import TIMEOUT, slicer, submit_slices

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

Start = Callable[..., Server]
ALONE = {"precompute": "false"}
FREE_KB = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96)
"""How much room is left, so that the disk gets full at each step of what is written."""


class SmallDisk:
    """A file system of a few MB in memory, which can be filled up to the last page."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder, self._filler = folder, folder / ".filler"
        folder.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            subprocess.run(mounting, check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("a small disk can be mounted by root only")

    def fill(self, *, free_kb: int = 0) -> None:
        self.empty()
        status = os.statvfs(self.folder)
        left = status.f_bavail * status.f_frsize - 1024 * free_kb
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, left) if left > 0 else None

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True, timeout=20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., SmallDisk]]:
    made: list[SmallDisk] = []

    def disk(name: str, *, megabytes: int) -> SmallDisk:
        made.append(SmallDisk(tmp_path / name, megabytes))
        return made[-1]

    yield disk
    for one in made:
        one.close()


@pytest.fixture
def mask(ct: Truth, tmp_path: Path) -> Path:
    write_volume(Volume(ct.mask("liver").astype(np.uint8), ct.grid.affine), tmp_path / "liver.nii.gz")
    return tmp_path / "liver.nii.gz"


def shown(ct: Truth) -> list[int]:
    return np.flatnonzero(ct.mask("liver").any(axis=(1, 2))).tolist()


def annotated(url: str) -> set[int]:
    known = requests.get(f"{url}/datastore/annotations", params={"image": CT}, timeout=TIMEOUT)
    assert known.status_code == 200, known.text
    return set(known.json()["partial"]["slices"].get("liver", {}).get("annotated", ()))


def click(url: str, ct: Truth, **more: Any) -> np.ndarray:
    return slicer(url, "sam_2d", CT, foreground=[ct.click("liver")], label="liver", reset_state=True, **more).mask


def refusal(url: str, mask: Path, k: int) -> str:
    """Submit a slice; why it was refused, "" where it was taken."""
    try:
        submit_slices(url, CT, mask, {"liver": 1}, [k])
    except AssertionError as error:
        return str(error)
    return ""


def says_what_to_do(detail: str) -> bool:
    return "Make room" in detail and "No space left" in detail


def test_submissions(start: Start, disk: Callable[..., SmallDisk], mask: Path, ct: Truth) -> None:
    small = disk("studies", megabytes=8)
    copy_of(CT, small.folder)
    server = start(studies=small.folder, conf=ALONE).wait_until_it_answers()
    left = shown(ct)
    answered = {left.pop()}
    submit_slices(server.url, CT, mask, {"liver": 1}, list(answered))
    refused = 0
    for free in FREE_KB:
        small.fill(free_kb=free)
        k = left.pop()
        if why := refusal(server.url, mask, k):
            refused += 1
            assert says_what_to_do(why), why
        else:
            answered.add(k)
        assert answered <= annotated(server.url) <= {*answered, k}
        answered = annotated(server.url)
        assert click(server.url, ct).any(), "who only looks and clicks is not disturbed"
    assert 0 < refused < len(FREE_KB), "else the disk was never full, or always"
    small.fill()
    server.kill()

    server = start(studies=small.folder, conf=ALONE).wait_until_it_answers()
    assert annotated(server.url) == answered, "on a full disk"
    assert click(server.url, ct).any()
    assert refusal(server.url, mask, left[-1])
    small.empty()
    server.kill()

    server = start(studies=small.folder, conf=ALONE).wait_until_it_answers()
    assert annotated(server.url) == answered
    assert refusal(server.url, mask, left[-1]) == ""
    assert annotated(server.url) == {*answered, left[-1]}


def test_room_for_what_is_sent(
    start: Start, disk: Callable[..., SmallDisk], mask: Path, ct: Truth, tmp_path: Path
) -> None:
    """The system's folder for temporary files is full, where uploads are received."""
    small = disk("tmp", megabytes=8)
    (tmp_path / "studies").mkdir()
    copy_of(CT, tmp_path / "studies")
    elsewhere = {"TMPDIR": str(small.folder)}
    server = start(studies=tmp_path / "studies", conf=ALONE, environment=elsewhere).wait_until_it_answers()
    small.fill()
    why = refusal(server.url, mask, shown(ct)[0])
    assert says_what_to_do(why), why
    small.empty()
    assert refusal(server.url, mask, shown(ct)[0]) == ""


@pytest.mark.parametrize("free_kb", [0, 64, 1024])
def test_embedding_and_adapting(
    free_kb: int, start: Start, disk: Callable[..., SmallDisk], mask: Path, ct: Truth, tmp_path: Path
) -> None:
    """Embeddings and task checkpoints are caches: without room for them the work is done all the same, or refused."""
    small = disk("store", megabytes=32)
    (tmp_path / "studies").mkdir()
    copy_of(CT, tmp_path / "studies")
    there = {"studies": tmp_path / "studies", "conf": ALONE, "environment": {"SSMSAM_CACHE": str(small.folder)}}
    server = start(**there).wait_until_it_answers()
    small.fill(free_kb=free_kb)
    expected = click(server.url, ct)
    assert expected.any()
    wanted = shown(ct)[::6]
    submit_slices(server.url, CT, mask, {"liver": 1}, wanted)
    said = {"params": '{"labels": ["liver"], "adapt": true, "wait": true, "budget_s": 5}'}
    adapting: dict[str, Any] = {"params": {"image": CT}, "data": said}
    answer = requests.post(f"{server.url}/infer/fewshot", timeout=TIMEOUT, **adapting)
    assert answer.status_code in (200, 507), answer.text[:500]
    assert answer.status_code == 200 or says_what_to_do(answer.text), answer.text
    assert np.array_equal(click(server.url, ct), expected)
    server.kill()

    server = start(**there).wait_until_it_answers()
    assert np.array_equal(click(server.url, ct), expected)
    assert annotated(server.url) == set(wanted)
    heads = requests.get(f"{server.url}/heads/", timeout=TIMEOUT)
    assert heads.status_code == 200, heads.text
    small.empty()
    answer = requests.post(f"{server.url}/infer/fewshot", timeout=TIMEOUT, **adapting)
    assert answer.status_code == 200, answer.text[:500]
    server.kill()
    server = start(**there).wait_until_it_answers()
    assert np.array_equal(click(server.url, ct), expected), "nothing half-written is taken for whole"
