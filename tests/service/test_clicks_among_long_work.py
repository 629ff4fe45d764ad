"""Clicks, proposals, choices of slices and background embedding at one encoder: nobody with a click waits for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from plain_files import PlainFiles

from fakes import TinyEncoder
from ssmsam.embeddings.embedder import Embedder
from ssmsam.progress import stop_if_cancelled
from ssmsam.service.background import Background
from ssmsam.service.images import Images
from ssmsam.service.jobs import Jobs

ENCODING_S = 0.1
CLICKERS, PROPOSERS, SLICES = 3, 3, 40
LONGEST_S = (CLICKERS + 4) * ENCODING_S + 1.0
"""The other clicks, a slice that is being made, one of long work that waited for long enough, and their neighbours."""


def test_no_click_waits_for_more_than_the_clicks_before_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    for image in range(4):
        write(tmp_path / f"case{image}.nii.gz", seed=image, shape=(SLICES, 20, 24))
    embedder, jobs, stop = Embedder(encoder=TinyEncoder(seconds=ENCODING_S)), Jobs(), threading.Event()
    images = Images(files=PlainFiles(tmp_path), embedder=embedder, memory_bytes=10**9)
    background = Background(images, jobs=jobs)
    opened = [images.open(images.from_datastore(f"case{image}")).embeddings for image in range(4)]
    waits: list[float] = []
    proposed: list[int] = []

    def click(number: int) -> None:
        for index in range(number, SLICES, CLICKERS):
            started = time.monotonic()
            with jobs.turns.brief():
                opened[index % 2].slice(index)
            waits.append(time.monotonic() - started)
            background.prefer(f"case{index % 2}", near=index)

    def propose(number: int) -> None:
        while not stop.is_set():
            with jobs.turns.long():
                opened[2 + number % 2].embed(range(len(proposed), len(proposed) + 2))
                stop_if_cancelled()
            proposed.append(number)

    clickers = [threading.Thread(target=click, args=(number,)) for number in range(CLICKERS)]
    proposers = [threading.Thread(target=propose, args=(number,)) for number in range(PROPOSERS)]
    for thread in (*proposers, *clickers):
        thread.start()
    for thread in clickers:
        thread.join()
    stop.set()
    for thread in proposers:
        thread.join()
    background.stop()
    assert len(waits) == SLICES and max(waits) < LONGEST_S
    assert len(proposed) >= 3, "long work went on meanwhile"
