"""A real archive that is killed in the middle of something and comes back; the server killed while it sends to one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from relay import DOWNLOAD, LISTING, UPLOAD, Relay, Side
from sample_cases import LABELS, SAMPLES
from serving import Server, free_port
from stored_segs import stored_seg
from viewers import TIMEOUT, ohif, refused

from ssmsam.cli.pacs import INSTALL, Orthanc, is_installed, running_orthanc
from ssmsam.reading import read_volume
from ssmsam.volume.volume import reoriented
from ssmsam.volume.writing import write_volume
from ssmsam_research.synthetic.samples import CASES

NAMES = [{"name": name, "idx": value} for name, value in LABELS.items()]
MIDDLE = 20_000
"""Bytes of a series or a SEG that pass before the cut: some, and not all."""
BACK_S = 60.0
"""How long after the archive is back everything has to have arrived."""


class Archive:
    """An Orthanc with the sample studies behind a relay; killed and started again on the same files."""

    def __init__(self, folder: Path, series: dict[str, Path]) -> None:
        self._folder, self._port = folder, free_port()
        self._running = contextlib.ExitStack()
        self.relay = Relay(self._port)
        self.start().upload(file for one in series.values() for file in sorted(one.glob("*.dcm")))

    def start(self) -> Orthanc:
        self.now = self._running.enter_context(running_orthanc(self._folder, port=self._port))
        return self.now

    def kill(self) -> None:
        os.kill(self.now.pid, signal.SIGKILL)
        self._running.close()

    def close(self) -> None:
        self._running.close()
        self.relay.close()

    def segs(self, image: str) -> int:
        """How many SEGs of a series it holds."""
        query = {"Level": "Instance", "Query": {"Modality": "SEG"}, "Expand": False}
        names = requests.post(f"{self.now.root}/tools/find", json=query, timeout=60).json()
        headers = [requests.get(f"{self.now.root}/instances/{name}/tags?short", timeout=60).json() for name in names]
        return sum(header["0008,1115"][0]["0020,000e"] == image for header in headers)


@pytest.fixture(scope="module")
def archive(series: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    if not is_installed():
        pytest.skip(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    running = Archive(tmp_path_factory.mktemp("orthanc"), series)
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(studies=archive.relay.url, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers().wait_until_warm()
    finally:
        running.kill()


@pytest.fixture(params=["ct_01"])
def image(request: pytest.FixtureRequest, series: dict[str, Path]) -> str:
    return uid_of(series[request.param])


def uid_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID)


@pytest.fixture
def truth(series: dict[str, Path], image: str, tmp_path: Path) -> Path:
    """The labels of the image, on the grid that the archive has."""
    case = next(name for name, folder in series.items() if uid_of(folder) == image)
    labels = reoriented(read_volume(SAMPLES / "abdomen_labels" / f"{case}.nii.gz"), "LPS")
    assert labels.grid.matches(read_volume(series[case]).grid)
    write_volume(labels, tmp_path / "mask.nii.gz")
    return tmp_path / "mask.nii.gz"


def submit(server: Server, image: str, mask: Path, **more: Any) -> requests.Response:
    with mask.open("rb") as file:
        return requests.put(
            f"{server.url}/datastore/label", params={"image": image, "tag": "final"}, timeout=TIMEOUT,
            data={"params": json.dumps({"label_info": NAMES, "client_id": "reader", **more})},
            files={"label": (mask.name, file)},
        )  # fmt: skip


def annotated(server: Server, image: str) -> Any:
    answer = requests.get(f"{server.url}/datastore/annotations", params={"image": image}, timeout=TIMEOUT)
    assert answer.status_code == 200, answer.text
    return answer.json()


def in_time(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BACK_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


def expect_one_seg(archive: Archive, server: Server, image: str, truth: Path, folder: Path) -> None:
    """The right one, once, whatever is sent again."""
    in_time(lambda: archive.segs(image) > 0)
    in_time(lambda: "unsent" not in server.info()["datastore"]["label_tags"])
    assert annotated(server, image)["finished"]
    answer = submit(server, image, truth)
    assert answer.status_code == 200, answer.text
    assert archive.segs(image) == 1
    assert len(stored_seg(archive.now, image, folder / "seg.dcm").SegmentSequence) == len(NAMES)
    back = requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=TIMEOUT)
    (folder / "back.nii.gz").write_bytes(back.content)
    assert np.array_equal(read_volume(folder / "back.nii.gz").array, read_volume(truth).array)


def test_an_archive_that_stops_while_it_sends_a_series(archive: Archive, server: Server, image: str) -> None:
    click = {"foreground": [[60, 60, 20]], "label": "liver", "client_id": "reader"}
    archive.relay.cut(DOWNLOAD, "answer", after=10 * MIDDLE, then=archive.kill)
    status, detail = refused(server.url, "sam_2d", image, **click)
    assert archive.relay.done.is_set()
    assert status == 503 and "ry again" in detail, detail
    assert "trouble" in server.info()["datastore"] or server.info()["datastore"]["total"]
    archive.start()
    in_time(lambda: "trouble" not in server.info()["datastore"])
    assert ohif(server.url, "sam_2d", image, **click).mask.shape[0] == CASES[0].shape[0]


@pytest.mark.parametrize("image", ["ct_02"], indirect=True)
def test_an_archive_that_stops_when_it_has_a_seg_and_did_not_say_so(
    archive: Archive, server: Server, image: str, truth: Path, tmp_path: Path
) -> None:
    archive.relay.cut(UPLOAD, "answer", after=0, then=archive.kill)
    answer = submit(server, image, truth)
    assert archive.relay.done.is_set()
    assert answer.status_code == 503 and "kept on this server" in answer.json()["detail"], answer.text
    known = annotated(server, image)
    archive.start()
    assert archive.segs(image) == 1, "this is the case that is meant"
    expect_one_seg(archive, server, image, truth, tmp_path)
    assert annotated(server, image)["partial"] == known["partial"]


@pytest.mark.faults
@pytest.mark.parametrize("image", ["ct_03"], indirect=True)
def test_an_archive_that_stops_in_the_middle_of_a_seg(
    archive: Archive, server: Server, image: str, truth: Path, tmp_path: Path
) -> None:
    archive.relay.cut(UPLOAD, "request", after=MIDDLE, then=archive.kill)
    answer = submit(server, image, truth)
    assert archive.relay.done.is_set()
    assert answer.status_code == 503 and "kept on this server" in answer.json()["detail"], answer.text
    assert "unsent" in server.info()["datastore"]["label_tags"]
    known = annotated(server, image)
    assert submit(server, image, truth).status_code == 503, "as it told the reader to"
    archive.start()
    expect_one_seg(archive, server, image, truth, tmp_path)
    assert annotated(server, image)["partial"] == known["partial"]


@pytest.mark.faults
@pytest.mark.parametrize("image", ["mr_04"], indirect=True)
def test_a_submission_to_an_image_that_does_not_come(
    archive: Archive, server: Server, image: str, truth: Path, tmp_path: Path
) -> None:
    """Drawn in a viewer that has it from the archive: this server never had it."""
    archive.relay.cut(DOWNLOAD, "answer", after=10 * MIDDLE, then=archive.kill)
    answer = submit(server, image, truth)
    assert archive.relay.done.is_set()
    assert answer.status_code == 503 and "kept on this server" in answer.json()["detail"], answer.text
    archive.start()
    expect_one_seg(archive, server, image, truth, tmp_path)


@pytest.mark.faults
def test_an_archive_that_stops_while_it_is_asked_what_is_next(archive: Archive, server: Server) -> None:
    time.sleep(11)  # until lists are too old
    archive.relay.cut(LISTING, "answer", after=0, then=archive.kill)
    answers = [
        requests.post(f"{server.url}/activelearning/{strategy}", json={"client_id": "a"}, timeout=TIMEOUT)
        for strategy in ("first", "random")
    ]
    for answer in answers:
        assert answer.status_code in (200, 503), answer.text
        assert answer.status_code == 200 or "again" in answer.json()["detail"]
    archive.start()
    in_time(lambda: "trouble" not in server.info()["datastore"])
    offered = requests.post(f"{server.url}/activelearning/first", json={"client_id": "a"}, timeout=TIMEOUT)
    assert offered.status_code == 200, offered.text


@pytest.mark.faults
def test_an_archive_that_stops_during_a_batch(archive: Archive, server: Server, series: dict[str, Path]) -> None:
    images = [uid_of(series[name]) for name in ("ct_01", "mr_05")]
    batch = {"images": images, "label_tag": "trial", "foreground": [[60, 60, 20]], "label": "liver"}

    def run() -> dict[str, Any]:
        answer = requests.post(
            f"{server.url}/batch/infer/sam_2d", params={"run_sync": True}, json=batch, timeout=TIMEOUT
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    requests.delete(f"{server.url}/cache", timeout=TIMEOUT).raise_for_status()
    archive.relay.cut(DOWNLOAD, "answer", after=10 * MIDDLE, then=archive.kill)
    run()
    assert archive.relay.done.is_set()
    archive.start()
    in_time(lambda: "trouble" not in server.info()["datastore"])
    run()
    for image in images:
        label = requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": "trial"}, timeout=TIMEOUT)
        assert label.status_code == 200, label.text


@pytest.mark.faults
@pytest.mark.parametrize(
    ("side", "after", "image"), [("request", MIDDLE, "mr_05"), ("answer", 0, "ct_01")], indirect=["image"]
)
def test_a_server_killed_while_it_sends_a_seg(
    side: Side, after: int, image: str, truth: Path, start: Callable[..., Server], tmp_path: Path, archive: Archive
) -> None:
    server = start(studies=archive.relay.url, conf={"precompute": "false"}).wait_until_it_answers()
    archive.relay.cut(UPLOAD, side, after=after, then=server.kill)
    with pytest.raises(requests.ConnectionError):
        submit(server, image, truth)
    assert archive.relay.done.wait(30)
    assert archive.segs(image) == (side == "answer")
    server = start(studies=archive.relay.url, conf={"precompute": "false"}).wait_until_it_answers()
    assert {one["name"] for one in NAMES} == set(annotated(server, image)["partial"]["slices"])
    assert submit(server, image, truth).status_code == 200, "sent again by a reader who got no answer"
    expect_one_seg(archive, server, image, truth, tmp_path)
