"""A whole few-shot session on a DICOM series: what the server writes and tells names nobody."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from dicomweb import DicomWeb
from sample_cases import CT, SAMPLES, Truth
from serving import Server
from viewers import TIMEOUT, ohif, slicer, submit_slices

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

NAME, PATIENT = "Zephyrine", "PAT-471199"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomWeb]:
    folder = tmp_path_factory.mktemp("series")
    for path in sorted((SAMPLES / "abdomen_dicom" / CT).iterdir()):
        file = pydicom.dcmread(path)
        file.PatientName, file.PatientID = f"{NAME}^Quill", PATIENT
        file.save_as(folder / path.name)
    running = DicomWeb(folder)
    yield running
    running.close()


@pytest.fixture(scope="module")
def remote(web: DicomWeb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(studies=web.url, home=tmp_path_factory.mktemp("home"))
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def secrets(web: DicomWeb) -> list[bytes]:
    first = web.first
    uids = [str(first[tag].value) for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    return [one.encode() for one in (NAME, "Quill", PATIENT, *uids, str(first.FrameOfReferenceUID))]


def said_of(data: bytes, web: DicomWeb) -> list[str]:
    """The lines that name the patient or an object of theirs."""
    return [
        line[:300].decode(errors="replace") for line in data.splitlines() if any(one in line for one in secrets(web))
    ]


def test_nobody_is_named(remote: Server, web: DicomWeb, ct: Truth, tmp_path: Path) -> None:
    url, image = remote.url, web.series
    sample = requests.post(f"{url}/activelearning/first", json={"client_id": "reader"}, timeout=TIMEOUT).json()
    assert sample["id"] == image
    requests.get(f"{url}/proxy/dicom/qido/studies", params={"PatientID": PATIENT}, timeout=TIMEOUT)
    sent = requests.get(f"{url}/datastore/image", params={"image": image}, timeout=TIMEOUT)
    (tmp_path / "image.nii.gz").write_bytes(sent.content)
    grid = read_volume(tmp_path / "image.nii.gz").grid
    k = ct.click("liver")[2]
    ohif(url, "sam_2d", image, foreground=[[grid.shape[2] // 2, grid.shape[1] // 2, k]], background=[], label="liver")

    mask = np.zeros(grid.shape, np.uint8)
    mask[:, grid.shape[1] // 3 : grid.shape[1] // 2, grid.shape[2] // 4 : grid.shape[2] // 2] = 1
    write_volume(Volume(mask, grid.affine), tmp_path / "mask.nii.gz")
    submit_slices(url, image, tmp_path / "mask.nii.gz", {"liver": 1}, [k - 4, k, k + 4])
    answer = slicer(url, "fewshot", image, wait=True, adapt=True, budget_s=5)
    name = answer.params["head"]
    requests.get(f"{url}/datastore/image", params={"image": "1.2.840.99999.17"}, timeout=TIMEOUT)

    checkpoint = requests.get(f"{url}/heads/{name}/file", timeout=TIMEOUT)
    assert checkpoint.status_code == 200, checkpoint.text
    assert len(checkpoint.content) < 5_000_000
    assert said_of(checkpoint.content, web) == [], "the exported checkpoint"
    assert said_of(str(checkpoint.headers).encode(), web) == [], "its name"
    assert said_of(json.dumps(remote.info()).encode(), web) == [], "/info/"
    jobs = requests.get(f"{url}/jobs", timeout=TIMEOUT).json()
    assert jobs["jobs"], "there was work"
    log = remote.log.read_bytes()
    assert b"uid-" in log, "what belongs together can be told by another name"
    assert said_of(log, web) == [], "the log"
    assert b"1.2.840.99999.17" not in log

    remote.wait_for(lambda info: not info["ssmsam"]["embedding"]["phase"])
    folders = ("sessions", "store/embeddings", *(str(one) for one in (remote.home / "store" / "heads").glob("*")))
    modes = {folder: oct(stat.S_IMODE((remote.home / folder).stat().st_mode)) for folder in folders}
    assert set(modes.values()) == {"0o700"}, modes

    cached = requests.get(f"{url}/cache", timeout=TIMEOUT)
    assert cached.status_code == 200, cached.text
    places = {place["name"]: place for place in cached.json()["places"]}
    assert places["embeddings"]["bytes"] > 0
    assert places["support"]["files"] > 0
    assert places["series"]["files"] == len(web.files)
    purged = requests.delete(f"{url}/cache", timeout=TIMEOUT)
    assert purged.status_code == 200, purged.text
    left = {place["name"]: place["bytes"] for place in requests.get(f"{url}/cache", timeout=TIMEOUT).json()["places"]}
    assert set(left.values()) == {0}, left
    known = requests.get(f"{url}/datastore/annotations", params={"image": image}, timeout=TIMEOUT).json()
    assert known["partial"]["slices"]["liver"]["annotated"] == [k - 4, k, k + 4], "annotations stay"
    again = slicer(url, "fewshot", image, wait=True, adapt=True, budget_s=5)
    assert again.params["head"] == name
    assert np.array_equal(again.mask, answer.mask), "nothing else has changed"
    assert said_of(remote.log.read_bytes(), web) == []
