"""The server on a real archive: segmentations there and back, and what happens when the archive goes away."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from drawn_measurements import images, presentation_state, report
from sample_cases import LABELS, SAMPLES, Truth
from serving import Server, free_port
from stored_segs import read_by_dcmqi, stored, stored_seg

from ssmsam.cli.pacs import Orthanc, running_orthanc
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume, reoriented
from ssmsam.volume.writing import write_volume

NAMES = [{"name": "Läsion" if name == "lesion" else name, "idx": value} for name, value in LABELS.items()]
TOLERANCE_MM = 0.05


@pytest.fixture(scope="module")
def archive(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(studies=orthanc.url, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def uid_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID)


def submit(url: str, image: str, mask: Path, params: dict, tag: str = "final") -> requests.Response:
    with mask.open("rb") as file:
        return requests.put(
            f"{url}/datastore/label", params={"image": image, "tag": tag},
            data={"params": json.dumps(params)}, files={"label": (mask.name, file)}, timeout=120,
        )  # fmt: skip


def test_ct_and_mr_are_offered(archive: Server, series: dict[str, Path]) -> None:
    objects = requests.get(f"{archive.url}/datastore/", params={"output": "all"}, timeout=60).json()["objects"]
    assert set(objects) == {uid_of(folder) for folder in series.values()}
    assert archive.info()["datastore"]["total"] == len(series)


@pytest.mark.parametrize("case", ["ct_02", "mr_05"])
def test_a_finished_mask_becomes_a_seg_that_others_read_right(
    case: str, archive: Server, orthanc: Orthanc, series: dict[str, Path], tmp_path: Path
) -> None:
    """The mask goes in on the grid of the downloaded image, as 3D Slicer sends it; dcmqi reads what was stored."""
    image = uid_of(series[case])
    sent = requests.get(f"{archive.url}/datastore/image", params={"image": image}, timeout=120)
    (tmp_path / "image.nii.gz").write_bytes(sent.content)
    grid = read_volume(tmp_path / "image.nii.gz").grid
    truth = reoriented(read_volume(SAMPLES / "abdomen_labels" / f"{case}.nii.gz"), "LPS")
    assert truth.grid.matches(grid), "the image comes where the archive has it"
    write_volume(truth, tmp_path / "mask.nii.gz")
    before = archive.info()["datastore"]["completed"]

    answer = submit(archive.url, image, tmp_path / "mask.nii.gz", {"label_info": NAMES, "client_id": "reader"})
    assert answer.status_code == 200, answer.text
    assert archive.info()["datastore"]["completed"] == before + 1
    left = requests.post(f"{archive.url}/activelearning/first", json={}, timeout=60).json()
    assert left["id"] != image

    seg = stored_seg(orthanc, image, tmp_path / "seg.dcm")
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == [entry["name"] for entry in NAMES]
    by_dcmqi = read_by_dcmqi(tmp_path / "seg.dcm", tmp_path / "dcmqi")
    assert len(by_dcmqi) == len(NAMES)
    for number, found in enumerate(by_dcmqi, start=1):
        mine = truth.array == number
        assert found.array.sum() == mine.sum()
        assert np.abs(centre(found) - centre(truth.with_array(mine.astype(np.uint8)))).max() < TOLERANCE_MM

    back = requests.get(f"{archive.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=60)
    (tmp_path / "back.nii.gz").write_bytes(back.content)
    assert (read_volume(tmp_path / "back.nii.gz").array == truth.array).all()


def centre(mask: Volume) -> np.ndarray:
    return mask.grid.to_lps(np.argwhere(mask.array)[:, ::-1].mean(axis=0)[None])[0]


def test_a_mask_on_another_grid_is_refused(archive: Server, ct: Truth, series: dict[str, Path], tmp_path: Path) -> None:
    write_volume(Volume(np.ones((4, 4, 4), np.uint8), ct.grid.affine), tmp_path / "mask.nii.gz")
    answer = submit(archive.url, uid_of(series["ct_01"]), tmp_path / "mask.nii.gz", {"label_info": NAMES})
    assert answer.status_code == 422
    assert "not on the image's grid" in answer.json()["detail"]


@pytest.mark.parametrize("params", [{}, {"label_info": []}, {"label_info": [{"name": "background", "idx": 0}]}])
@pytest.mark.parametrize("tag", ["final", ""])
def test_a_mask_without_names_is_refused(
    params: dict, tag: str, archive: Server, orthanc: Orthanc, series: dict[str, Path], tmp_path: Path
) -> None:
    """Not even those that the server offers, in order: the value 1 may be anything."""
    image, grid = uid_of(series["ct_03"]), read_volume(series["ct_03"]).grid

    def known() -> dict:
        return requests.get(f"{archive.url}/datastore/annotations", params={"image": image}, timeout=60).json()

    before = known()
    write_volume(Volume(np.ones(grid.shape, np.uint8), grid.affine), tmp_path / "mask.nii.gz")
    answer = submit(archive.url, image, tmp_path / "mask.nii.gz", params, tag)
    assert answer.status_code == 422, answer.text
    assert '"label_info": [{"name"' in answer.json()["detail"]
    assert known() == before
    with pytest.raises(AssertionError, match="no SEG"):
        stored_seg(orthanc, image, tmp_path / "seg.dcm")


def test_a_finished_volume_without_any_organ_stores_nothing(
    archive: Server, orthanc: Orthanc, series: dict[str, Path], tmp_path: Path
) -> None:
    image = uid_of(series["ct_03"])
    grid = read_volume(series["ct_03"]).grid
    write_volume(Volume(np.zeros(grid.shape, np.uint8), grid.affine), tmp_path / "mask.nii.gz")
    answer = submit(archive.url, image, tmp_path / "mask.nii.gz", {"label_info": NAMES})
    assert answer.status_code == 200, answer.text
    with pytest.raises(AssertionError, match="no SEG"):
        stored_seg(orthanc, image, tmp_path / "seg.dcm")


def test_a_prediction_as_dicom_seg(archive: Server, ct: Truth, series: dict[str, Path], tmp_path: Path) -> None:
    click = ct.click("left kidney")
    request = {"params": json.dumps({"foreground": [click], "background": [], "label": "left kidney"})}
    answer = requests.post(
        f"{archive.url}/infer/sam_2d", data=request, timeout=120,
        params={"image": uid_of(series["ct_01"]), "output": "dicom_seg"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text[:500]
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert seg.Modality == "SEG"
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["left kidney"]


def test_no_patient_in_the_log(archive: Server, series: dict[str, Path]) -> None:
    requests.get(f"{archive.url}/proxy/dicom/qido/studies", params={"PatientID": "SAMPLE-11"}, timeout=60)
    requests.post(f"{archive.url}/activelearning/random", json={}, timeout=60)
    said = archive.said()
    assert "Downloaded series" in said, "the log says what happened"
    assert "SAMPLE-" not in said


@pytest.mark.faults
@pytest.mark.usefixtures("orthanc")  # skips without one
def test_an_archive_that_goes_away_and_comes_back(tmp_path: Path, start: Callable[..., Server]) -> None:
    folder, port = tmp_path / "orthanc", free_port()
    with running_orthanc(folder, port=port, user="reader", password="sesame") as mine:
        mine.upload(sorted((SAMPLES / "abdomen_dicom" / "ct_01").glob("*.dcm")))
        home = tmp_path / "home"
        login = {"MONAI_LABEL_DICOMWEB_USERNAME": "reader", "MONAI_LABEL_DICOMWEB_PASSWORD": "sesame"}
        server = start(studies=mine.url, home=home, conf={"precompute": "false"}, environment=login)
        server.wait_until_it_answers()
        assert server.info()["datastore"]["total"] == 1
    assert "trouble" in wait_for_datastore(server, lambda state: "trouble" in state)
    proxied = requests.get(f"{server.url}/proxy/dicom/qido/studies", timeout=60)
    assert proxied.status_code == 502
    sample = requests.post(f"{server.url}/activelearning/first", json={}, timeout=60)
    assert sample.status_code == 503
    assert "cannot be reached" in sample.json()["detail"]
    with running_orthanc(folder, port=port, user="reader", password="sesame"):
        assert wait_for_datastore(server, lambda state: "trouble" not in state)["total"] == 1
        sample = requests.post(f"{server.url}/activelearning/first", json={}, timeout=60)
        assert sample.json()["Modality"] == "CT"
    assert "sesame" not in server.said()


def wait_for_datastore(server: Server, condition: Callable[[dict], bool]) -> dict:
    server.wait_for(lambda info: condition(info["datastore"]), seconds=60)
    return server.info()["datastore"]


def test_measurements_in_the_archive_are_prompts(
    archive: Server, orthanc: Orthanc, series: dict[str, Path], tmp_path: Path
) -> None:
    folder = series["ct_01"]
    line, arrow = np.array([[40.0, 60.0], [70.0, 66.0]]), np.array([[20.0, 30.0], [45.0, 50.0]])
    drawn = images(folder)
    made = report(drawn, [("POLYLINE", 20, line)]), presentation_state(drawn, [("ARROW", 12, arrow)])
    with stored(orthanc, made, tmp_path):
        image = uid_of(folder)
        answer = requests.get(f"{archive.url}/studies/measurements", params={"image": image}, timeout=60)
        assert answer.status_code == 200, answer.text
        found = {(one["source"], one["kind"], one["slice"]): one for one in answer.json()["measurements"]}
        assert set(found) == {("SR", "line", 20), ("PR", "arrow", 12)}
        np.testing.assert_allclose(np.array(found["SR", "line", 20]["points"])[:, :2], line, atol=0.01)
        assert found["PR", "arrow", 12]["prompts"] == {"slice": 12, "foreground": [[45, 50, 12]]}
        other = requests.get(
            f"{archive.url}/studies/measurements", params={"image": uid_of(series["mr_04"])}, timeout=60
        )
        assert other.json()["measurements"] == []
