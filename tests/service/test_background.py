from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_files import PlainFiles

from fakes import PoolingEncoder
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.models.encoder import Embedding
from ssmsam.service.background import WAITING, Background
from ssmsam.service.images import Images
from ssmsam.service.jobs import UnknownJob

Write = Callable[..., Path]


class SlowEncoder(PoolingEncoder):
    """Takes its time, and can be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def encode(self, slices: torch.Tensor) -> Embedding:
        self.go.wait(10)
        time.sleep(0.3)  # long enough for batches of one
        return super().encode(slices)


@pytest.fixture
def encoder() -> SlowEncoder:
    return SlowEncoder()


@pytest.fixture
def images(tmp_path: Path, write: Write, encoder: SlowEncoder) -> Images:
    for number in range(6):
        write(tmp_path / f"case{number}.nii.gz", seed=number, shape=(5, 20, 24))
    return Images(files=PlainFiles(tmp_path), embedder=Embedder(encoder=encoder), memory_bytes=10**9)


@pytest.fixture
def background(images: Images) -> Iterator[Background]:
    worker = Background(images)
    yield worker
    worker.stop()


def done(images: Images, name: str) -> np.ndarray:
    return images.open(images.from_datastore(name)).embeddings.done


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nearest_slices_first(background: Background, images: Images) -> None:
    background.prefer("case0", near=3)
    wait_for(lambda: done(images, "case0").sum() >= 1)
    assert done(images, "case0")[3]
    wait_for(lambda: bool(done(images, "case0").all()))
    wait_for(lambda: background.jobs.listed() == [])
    assert background.status == {"image": "case0", "phase": "", "done": 5, "total": 5, "waiting": 0}


def test_what_is_embedded_is_listed_as_a_job(background: Background, images: Images) -> None:
    background.prefer("case0", client="me")
    wait_for(lambda: done(images, "case0").any())
    background.prefer("case1")
    jobs = {job.image: job.as_json() for job in background.jobs.listed()}
    assert jobs["case0"]["owner"] == "me" and jobs["case0"]["kind"] == "embed" and jobs["case0"]["total"] == 5
    assert set(jobs) == {"case0", "case1"}
    wait_for(lambda: background.status["image"] == "case1" and background.status["phase"] == "embed")
    assert [job.state for job in background.jobs.listed()] == ["running", "queued"]


def test_one_is_cancelled_and_the_other_goes_on(background: Background, images: Images) -> None:
    background.prefer("case0")
    wait_for(lambda: done(images, "case0").any())
    background.prefer("case1")
    known = {job.image: job.id for job in background.jobs.listed()}
    for image in ("case0", "case1"):  # one waits, one runs
        background.jobs.cancel(known[image])
    wait_for(lambda: background.jobs.listed() == [])
    assert not done(images, "case0").all() and not done(images, "case1").all()
    with pytest.raises(UnknownJob):
        background.jobs.cancel(known["case0"])
    background.prefer("case1")
    wait_for(lambda: bool(done(images, "case1").all()))


def test_the_order_follows_the_last_click(background: Background, images: Images, encoder: SlowEncoder) -> None:
    background.prefer("case0", near=0)
    wait_for(lambda: done(images, "case0").any())
    background.prefer("case0", near=4)
    background.prefer("case0")  # a request that names no slice
    wait_for(lambda: done(images, "case0").sum() >= 3)
    assert done(images, "case0")[4]
    assert len(background.jobs.listed()) == 1


def test_nothing_is_begun_while_a_click_is_answered(background: Background, images: Images) -> None:
    with background.jobs.turns.brief():
        background.prefer("case0")
        time.sleep(0.5)
        assert not done(images, "case0").any()
    wait_for(lambda: done(images, "case0").any())
    with background.jobs.turns.brief():
        time.sleep(0.5)  # for the slice that was begun
        made = done(images, "case0").sum()
        time.sleep(0.5)
        assert done(images, "case0").sum() == made < 5
    wait_for(lambda: bool(done(images, "case0").all()))


def test_nobody_wants_an_image_for_ever(images: Images) -> None:
    worker = Background(images, wanted_s=0.5)
    try:
        worker.prefer("case0")
        wait_for(lambda: worker.jobs.listed() == [])
        assert not done(images, "case0").all()
    finally:
        worker.stop()


def test_the_newest_wish_goes_first_and_the_old_one_is_taken_up_again(
    background: Background, images: Images, encoder: SlowEncoder
) -> None:
    background.prefer("case0")
    wait_for(lambda: done(images, "case0").any())
    background.prefer("case1")
    wait_for(lambda: bool(done(images, "case1").all()))
    assert not done(images, "case0").all()
    wait_for(lambda: bool(done(images, "case0").all()))


def test_a_broken_image_does_not_stop_the_others(background: Background, images: Images, tmp_path: Path) -> None:
    (tmp_path / "case2.nii.gz").write_bytes(b"nothing")
    for wrong in ("case2", "no such image"):
        background.prefer(wrong)
        wait_for(lambda: background.status["waiting"] == 0)
        time.sleep(0.2)
    background.prefer("case1")
    wait_for(lambda: bool(done(images, "case1").all()))


def test_waiting_images_are_bounded(background: Background, encoder: SlowEncoder) -> None:
    encoder.go.clear()
    for number in range(6):
        background.prefer(f"case{number}")
    assert background.status["waiting"] <= WAITING
    encoder.go.set()


def test_it_stops_between_two_slices(background: Background, images: Images) -> None:
    background.prefer("case0")
    wait_for(lambda: done(images, "case0").any())
    started = time.monotonic()
    background.stop()
    assert time.monotonic() - started < 2
    made = done(images, "case0").sum()
    assert 0 < made < 5
    time.sleep(0.5)
    assert done(images, "case0").sum() == made


def test_switched_off(images: Images) -> None:
    worker = Background(images, enabled=False)
    worker.prefer("case0")
    assert worker.jobs.listed() == []
    time.sleep(0.4)
    assert not done(images, "case0").any()


def test_what_proposals_will_want_follows_when_all_slices_are_embedded(images: Images) -> None:
    asked: list[tuple[int, int]] = []

    def steps_ahead(volume: VolumeEmbeddings) -> list[Callable[[], object]]:
        return [partial(step, volume, number) for number in range(3)]

    def step(volume: VolumeEmbeddings, number: int) -> None:
        asked.append((int(volume.done.sum()), number))
        time.sleep(0.2)

    worker = Background(images, steps_ahead=steps_ahead)
    try:
        worker.prefer("case0")
        wait_for(lambda: worker.status["phase"] == "motion")
        assert [job.as_json()["phase"] for job in worker.jobs.listed()] == ["motion"]
        wait_for(lambda: worker.jobs.listed() == [])
        assert asked == [(5, 0), (5, 1), (5, 2)]
    finally:
        worker.stop()


def test_clicks_go_before_what_proposals_will_want(images: Images) -> None:
    asked: list[int] = []
    worker = Background(images, steps_ahead=lambda volume: [partial(asked.append, number) for number in range(3)])
    try:
        images.open(images.from_datastore("case0")).embeddings.embed(range(5))
        with worker.jobs.turns.brief():
            worker.prefer("case0")
            time.sleep(0.5)
            assert asked == []
        wait_for(lambda: asked == [0, 1, 2])
    finally:
        worker.stop()
