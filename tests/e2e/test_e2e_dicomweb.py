"""Studies that come from a DICOMweb server instead of a folder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import requests
from dicomweb import DicomWeb
from sample_cases import CT, SAMPLES, Truth, dice, resampled
from serving import Server
from viewers import ohif, refused

from ssmsam.reading import read_grid


@pytest.fixture(scope="module")
def web() -> Iterator[DicomWeb]:
    running = DicomWeb(SAMPLES / "abdomen_dicom" / CT)
    yield running
    running.close()


@pytest.fixture(scope="module")
def remote(web: DicomWeb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(studies=web.url, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def test_a_series_is_segmented_where_the_user_clicked(remote: Server, web: DicomWeb, server: Server, ct: Truth) -> None:
    assert remote.info()["datastore"]["total"] == 1
    click = ct.click("spleen")
    grid = read_grid(SAMPLES / "abdomen_dicom" / CT)
    ijk = np.rint(grid.to_ijk(ct.grid.to_lps(np.array([click]))))[0].astype(int).tolist()
    from_series = ohif(remote.url, "sam_2d", web.series, foreground=[ijk], background=[])
    from_file = ohif(server.url, "sam_2d", CT, foreground=[click], background=[])
    assert dice(resampled(from_series.mask > 0, grid, ct.grid), from_file.mask > 0) > 0.95


def test_other_series_and_paths_are_unknown(remote: Server, web: DicomWeb) -> None:
    for name in ("1.2.3", "/etc", "..", f"../{web.series}", f"{web.series}.nii.gz"):
        status, detail = refused(remote.url, "sam_2d", name, foreground=[[80, 80, 20]])
        assert status == 404, detail
        for what in ("image", "image/info"):
            answer = requests.get(f"{remote.url}/datastore/{what}", params={"image": name}, timeout=60)
            assert answer.status_code == 404
        answer = requests.get(f"{remote.url}/datastore/label", params={"label": name, "tag": "final"}, timeout=60)
        assert answer.status_code == 404


def test_next_sample_and_download(remote: Server, web: DicomWeb) -> None:
    sample = requests.post(f"{remote.url}/activelearning/first", json={}, timeout=60).json()
    assert sample["id"] == sample["SeriesInstanceUID"] == web.series
    image = requests.get(f"{remote.url}/datastore/image", params={"image": web.series}, timeout=60)
    assert image.status_code == 200
    assert image.content[:2] == b"\x1f\x8b"


def test_the_proxy_asks_for_the_patient_that_the_viewer_asked_for(remote: Server, web: DicomWeb) -> None:
    before = len(web.asked)
    address = f"{remote.url}/proxy/dicom/qido/studies/1.2/series"
    mine = requests.get(address, params={"PatientID": web.first.PatientID}, timeout=60)
    other = requests.get(address, params={"PatientID": "SOMEBODY-ELSE"}, timeout=60)
    assert len(mine.json()) == 1
    assert other.json() == []
    assert web.asked[before] == f"/dicom-web/studies/1.2/series?PatientID={web.first.PatientID}"
