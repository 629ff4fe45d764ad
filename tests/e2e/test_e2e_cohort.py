"""A cohort from a real archive and back into it, and the same work asked of a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from dask_processes import Processes, free_port, wait
from sample_cases import CT, MR, SAMPLES, Truth, copy_of, dice
from serving import Server
from stored_segs import remove_series, stored_seg
from viewers import TIMEOUT, slicer, stored_label, submit_slices

from ssmsam import FewShotSegmenter, read_volume
from ssmsam.cli import main
from ssmsam.cli.pacs import Orthanc
from ssmsam.cluster import Study, studies_of
from ssmsam.cluster.studies import files_of
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

pytest.importorskip("distributed")

ORGAN = "liver"
FOUND = 0.8
"""Dice of the liver on the volume that four of its slices were taken from."""


def slices_of(truth: Truth) -> list[int]:
    shows = np.flatnonzero(truth.mask(ORGAN).any(axis=(1, 2)))
    return [int(shows[round(share * (len(shows) - 1))]) for share in np.linspace(0, 1, 4)]


@pytest.fixture(scope="module")
def task(ct: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = read_volume(SAMPLES / "abdomen" / f"{CT}.nii.gz")
    model = FewShotSegmenter.from_pretrained("small")
    examples = {ORGAN: [(image, index, ct.mask(ORGAN)[index]) for index in slices_of(ct)]}
    return model.adapt(examples).save(tmp_path_factory.mktemp("task") / "liver.safetensors")


def segs(orthanc: Orthanc) -> int:
    query = {"Level": "Series", "Query": {"Modality": "SEG"}}
    return len(requests.post(f"{orthanc.root}/tools/find", json=query, timeout=TIMEOUT).json())


def test_a_series_of_an_archive_is_segmented_into_it_once(
    orthanc: Orthanc, task: Path, ct: Truth, tmp_path: Path
) -> None:
    everything = studies_of(orthanc.url)
    image = next(study for study in everything if _is_the_sample(study))
    assert image.series and len(everything) > 1
    address = f"{orthanc.url}/studies/{image.series.study_uid}/series/{image.name}"
    assert studies_of(address) == [image]
    listed = tmp_path / "cohort.txt"
    listed.write_text(f"{address}  # one of them\n")
    before = segs(orthanc)
    options = ["--task", str(task), "--encoder", "small", "--store", str(tmp_path / "store"), "--to-archive"]
    for out in ("one", "two"):  # the second run knows nothing of the first
        assert main(["segment", "--studies", str(listed), "--out", str(tmp_path / out), *options]) == 0
        assert segs(orthanc) == before + 1
    seg = stored_seg(orthanc, image.name, tmp_path / "seg.dcm")
    with files_of(image) as folder:
        found = read_seg(tmp_path / "seg.dcm", read_volume(folder).grid)
    remove_series(orthanc, str(seg.SeriesInstanceUID))  # the archive is that of other tests too
    assert dice(found.volume.array == found.labels[ORGAN], ct.mask(ORGAN)) > FOUND


def _is_the_sample(study: Study) -> bool:
    with files_of(study) as folder:
        return read_volume(folder).shape == read_volume(SAMPLES / "abdomen" / f"{CT}.nii.gz").shape


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cohort-studies")
    for name in (CT, "ct_02", MR):
        copy_of(name, folder)
    (folder / "broken.nii.gz").write_bytes(b"no image")
    home = tmp_path_factory.mktemp("cohort-home")
    running = Server(studies=folder, home=home, conf={"precompute": "false"}, cold=True)  # it starts processes itself
    try:
        yield running.wait_until_it_answers().wait_until_warm()
    finally:
        running.kill()


def ask(server: Server, work: str, **params: Any) -> requests.Response:
    return requests.post(f"{server.url}/cohort/{work}", json=params, timeout=TIMEOUT)


def ended(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        found = requests.get(f"{server.url}/jobs/{job['id']}", timeout=TIMEOUT).json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{job} did not end")


def test_everything_is_embedded_beside_clicks(server: Server, ct: Truth) -> None:
    answer = ask(server, "embed", images=[CT, "ct_02", "broken"])
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["kind"] == "cohort" and job["title"] == "embed 3 images"
    assert ask(server, "embed").status_code == 429
    assert slicer(server.url, "sam_2d", MR, foreground=[[100, 100, 12]], label=ORGAN).mask.any()  # meanwhile
    done = ended(server, job)
    assert (done["state"], done["done"], done["total"]) == ("done", 3, 3), done
    assert done["detail"].startswith("2 of 3 images done. Left out: broken: ")
    encoded = server.info()["ssmsam"]["encoded_slices"]
    slicer(server.url, "sam_2d", CT, foreground=[ct.click(ORGAN)], label=ORGAN)
    assert server.info()["ssmsam"]["encoded_slices"] == encoded


def test_a_cohort_is_segmented_with_what_was_learned(server: Server, ct: Truth, tmp_path: Path) -> None:
    assert ask(server, "segment").status_code == 422  # nothing was learned yet
    assert "annotate a few slices" in ask(server, "segment").json()["detail"]
    known = slices_of(ct)
    drawn = np.where(ct.mask(ORGAN), 1, 0).astype(np.uint8)
    drawn[np.setdiff1d(np.arange(len(drawn)), known)] = 0
    write_volume(Volume(drawn, ct.grid.affine), tmp_path / "liver.nii.gz")
    submit_slices(server.url, CT, tmp_path / "liver.nii.gz", {ORGAN: 1}, known)
    slicer(server.url, "fewshot", CT, labels=[ORGAN], wait=True)
    done = ended(server, ask(server, "segment", images=[CT, "ct_02"]).json())
    assert (done["state"], done["detail"]) == ("done", "2 of 2 images done")
    mask, numbers = stored_label(server.url, CT, "original")
    assert dice(mask == numbers[ORGAN], ct.mask(ORGAN)) > FOUND
    other, numbers = stored_label(server.url, "ct_02", "original")
    assert dice(other == numbers[ORGAN], Truth.of("ct_02").mask(ORGAN)) > 0.5


@pytest.mark.parametrize(
    ("work", "params", "status", "said"),
    [
        ("embed", {"images": ["nobody"]}, 404, "there is no image 'nobody'"),
        ("segment", {"checkpoint": "nothing"}, 404, "there is no task checkpoint 'nothing'"),
        ("segment", {"method": "nothing"}, 404, "there is no method 'nothing'"),
        ("dance", {}, 422, "embed"),
        ("embed", {"image": CT}, 422, "image"),
    ],
)
def test_what_cannot_be_done_is_said(server: Server, work: str, params: dict, status: int, said: str) -> None:
    answer = ask(server, work, **params)
    assert answer.status_code == status and said in answer.text


@pytest.mark.faults
def test_a_scheduler_that_is_away_and_comes_back(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    copy_of(MR, tmp_path / "studies")
    port = free_port()
    conf = {"cluster": f"tcp://127.0.0.1:{port}", "precompute": "false"}
    server = start(studies=tmp_path / "studies", conf=conf).wait_until_it_answers()
    done = ended(server, ask(server, "embed").json())
    assert done["state"] == "failed"
    assert f"no Dask scheduler answers at tcp://127.0.0.1:{port}: start one" in done["detail"]
    cluster = Processes(port=port)
    try:
        cluster.worker()
        done = ended(server, ask(server, "embed").json())
        assert (done["state"], done["detail"]) == ("done", "1 of 1 images done")
    finally:
        cluster.stop()
    slicer(server.url, "sam_2d", MR, foreground=[[100, 100, 12]], label=ORGAN)
    assert server.info()["ssmsam"]["encoded_slices"] == 0


@pytest.mark.faults
def test_a_training_runs_on_a_worker(start: Callable[..., Server], ct: Truth, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    copy_of(CT, tmp_path / "studies")
    cluster = Processes()
    try:
        worker = cluster.worker()
        conf = {"cluster": cluster.address, "precompute": "false", "encoder": "small"}
        server = start(studies=tmp_path / "studies", conf=conf).wait_until_it_answers().wait_until_warm()
        known = slices_of(ct)
        drawn = np.where(ct.mask(ORGAN), 1, 0).astype(np.uint8)
        drawn[np.setdiff1d(np.arange(len(drawn)), known)] = 0
        write_volume(Volume(drawn, ct.grid.affine), tmp_path / "liver.nii.gz")
        submit_slices(server.url, CT, tmp_path / "liver.nii.gz", {ORGAN: 1}, known)
        train = f"{server.url}/train/fewshot_decoder"
        job = requests.post(train, json={"steps": 2}, timeout=TIMEOUT).json()
        seen: set[str] = set()
        while requests.get(f"{server.url}/jobs/{job['id']}", timeout=TIMEOUT).json()["state"] in ("queued", "running"):
            seen |= set(programs_of(worker.pid))
            time.sleep(0.1)
        done = ended(server, job)
        assert done["state"] == "done", done
        assert any("fewshot_decoder" in line for line in seen), seen
        heads = requests.get(f"{server.url}/heads", timeout=TIMEOUT).json()
        assert heads["active"] and heads["heads"][heads["active"]]["trained"]

        job = requests.post(train, json={"steps": 100_000, "budget_s": 600}, timeout=TIMEOUT).json()
        wait(lambda: programs_of(worker.pid))
        requests.delete(f"{server.url}/jobs/{job['id']}", timeout=TIMEOUT).raise_for_status()
        assert ended(server, job)["state"] == "cancelled"
        wait(lambda: not programs_of(worker.pid))
    finally:
        cluster.stop()


def programs_of(pid: int) -> list[str]:
    """The command lines of MONAI Label's programs that a process started."""
    found = []
    for one in psutil.Process(pid).children():
        with suppress(psutil.Error):  # it has just ended
            found.append(" ".join(one.cmdline()))
    return [line for line in found if "monailabel.interfaces.utils.app" in line]
