"""The server, the command line and Python give the same mask, voxel for voxel, for the same annotated slices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from sample_cases import CT, LABELS, SAMPLES
from serving import ROOT, Server
from viewers import TIMEOUT, slicer

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.config import DEFAULTS
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.registry import load_encoder, load_target_decoder
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

PART = slice(10, 27)
"""The slices of the sample CT that are used: the liver begins among them, the right kidney ends."""
NUMBERS = {"liver": 1, "right kidney": 2}
KNOWN = (1, 7, 16)
"""Annotated slices, counted from the first of that part. Each organ is on two of them: too few to hold one out, so
that the decoder is adapted in any case."""
PATIENCE_S = 600.0
"""More than all steps take: a budget that runs out stops after another number of steps in every run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``studies/part.nii.gz``, a part of the sample CT, and ``labels.nii.gz``."""
    folder = tmp_path_factory.mktemp("parity")
    image, labels = (read_volume(SAMPLES / name / f"{CT}.nii.gz") for name in ("abdomen", "abdomen_labels"))
    write_volume(Volume(image.array[PART], image.affine), folder / "studies" / "part.nii.gz")
    drawn = sum((labels.array[PART] == LABELS[organ]) * np.uint8(value) for organ, value in NUMBERS.items())
    write_volume(Volume(drawn, image.affine), folder / "labels.nii.gz")
    return folder


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """It works while the server starts."""
    running = started_program(folder)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("parity-home")
    running = Server(studies=folder / "studies", home=home, conf={"precompute": "false", "threads": "1"})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


@pytest.mark.slow
def test_three_ways_to_the_same_mask(program: subprocess.Popen[str], server: Server, folder: Path) -> None:
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(from_server, server, folder)
        by_python = from_python(folder)
        by_server = asked.result()
    by_program = finished(program, folder)
    assert sorted(np.unique(by_python)) == [0, 1, 2]
    assert by_python.any(axis=(1, 2)).sum() > len(KNOWN), "nothing was proposed"
    np.testing.assert_array_equal(by_server, by_python)
    np.testing.assert_array_equal(by_program, by_python)


def from_server(server: Server, folder: Path) -> np.ndarray:
    """Label map after a submission over REST."""
    array = read_volume(folder / "labels.nii.gz").array
    shown = {organ: [k for k in KNOWN if (array[k] == value).any()] for organ, value in NUMBERS.items()}
    said = {
        "label_info": [{"name": organ, "idx": value} for organ, value in NUMBERS.items()],
        "client_id": "reader",
        "partial": {
            "slices": {
                organ: {"annotated": slices, "empty": sorted(set(KNOWN) - set(slices))}
                for organ, slices in shown.items()
            }
        },
    }
    with (folder / "labels.nii.gz").open("rb") as file:
        response = requests.put(
            f"{server.url}/datastore/label",
            params={"image": "part", "tag": "partial"},
            files={"label": ("labels.nii.gz", file)},
            data={"params": json.dumps(said)},
            timeout=TIMEOUT,
        )
    assert response.status_code == 200, response.text
    answer = slicer(server.url, "fewshot", "part", budget_s=PATIENCE_S, wait=True)
    assert answer.params["learned_from"] == dict.fromkeys(NUMBERS, len(KNOWN))
    assert answer.params["label_names"] == NUMBERS
    return answer.mask


def from_python(folder: Path) -> np.ndarray:
    """The same from ``ssmsam.fewshot``, without a store."""
    torch.set_num_threads(1)
    embedder = Embedder(encoder=load_encoder("small"))
    query = embedder.open(read_volume(folder / "studies" / "part.nii.gz"))
    drawn = read_volume(folder / "labels.nii.gz").array
    support = {
        organ: [LabelledSlice(query, index, drawn[index] == value) for index in KNOWN]
        for organ, value in NUMBERS.items()
    }
    config = replace(DEFAULTS, adaptation=replace(DEFAULTS.adaptation, budget_s=PATIENCE_S))
    head = adapt(support, embedder, load_target_decoder("small"), config=config)
    assert head.card["steps"] == DEFAULTS.adaptation.steps
    return segment(query, head, support=support).mask


def started_program(folder: Path) -> subprocess.Popen[str]:
    """``apps/segment.py`` in a process of its own."""
    image = folder / "studies" / "part.nii.gz"
    command = [
        sys.executable, "apps/segment.py",
        "--support", f"{image}:{folder / 'labels.nii.gz'}:{','.join(map(str, KNOWN))}",
        "--names", *(f"{organ}={value}" for organ, value in NUMBERS.items()),
        "--query", str(image), "--out", str(folder / "found.nii.gz"), "--store", str(folder / "store"),
        "--threads", "1", "--budget-s", str(PATIENCE_S),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(program: subprocess.Popen[str], folder: Path) -> np.ndarray:
    said, _ = program.communicate(timeout=TIMEOUT)
    assert program.returncode == 0, said
    return read_volume(folder / "found.nii.gz").array
