"""What a page asks for beside masks: quick answers, first looks, states, review and exports, on the real server."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import nibabel as nib
import numpy as np
import pytest
import requests
from drawn_measurements import images, report
from PIL import Image
from sample_cases import CT, MR, SAMPLES, Truth, copy_of, dice, resampled
from serving import Server
from viewers import slicer

from ssmsam.dicom.rtstruct import read_rtstruct
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.reading import read_grid, read_volume
from ssmsam.volume.geometry import axis_codes
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

SERIES = "ct_series"
SMALL = {"encoder": "small"}
STORED = (CT, "ct_01_RAS", "ct_01_LAS", "ct_01_LPI", "ct_series")


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(b64decode(packed["data"])), np.uint8).reshape(packed["shape"])


def clicked(url: str, image: str, **params: Any) -> requests.Response:
    said = {"label": "liver", "answer": "slice", **params}
    return requests.post(
        f"{url}/infer/sam_2d", params={"image": image, "output": "json"}, data={"params": json.dumps(said)}, timeout=60
    )


def get(server: Server, path: str, **params: Any) -> requests.Response:
    return requests.get(f"{server.url}{path}", params=params, timeout=60)


def place_of(studies: Path, image: str) -> Path:
    file = studies / f"{image}.nii.gz"
    return file if file.exists() else studies / image


@pytest.mark.parametrize("image", STORED)
def test_a_slice_is_that_of_the_volume_in_every_order(server: Server, studies: Path, ct: Truth, image: str) -> None:
    click, grid = ct.click("liver"), read_grid(place_of(studies, image))
    ijk = np.rint(grid.to_ijk(ct.grid.to_lps(np.array([click]))))[0].astype(int).tolist()
    whole = slicer(server.url, "sam_2d", image, label="liver", foreground=[ijk], slice=ijk[2], client_id="whole").mask
    details = clicked(server.url, image, foreground=[ijk], slice=ijk[2], client_id="slice").json()
    packed, unsure = details["slice_mask"], details["uncertainty"]
    mask = unpacked(packed)
    np.testing.assert_array_equal(mask, whole[ijk[2]])
    assert details["voxels"] == mask.sum() > 0
    assert (packed["axis"], packed["index"], packed["shape"]) == (2, ijk[2], list(grid.shape[1:]))
    assert "".join(packed["towards"][::-1]) == axis_codes(grid)[:2]
    doubt = unpacked(unsure)
    assert doubt.shape == mask.shape
    assert 0 < doubt.max() <= 255
    assert doubt[ijk[1], ijk[0]] < doubt.max()


def test_a_slice_counts_as_shown(server: Server, ct: Truth) -> None:
    click = ct.click("spleen")
    details = clicked(server.url, CT, label="spleen", foreground=[click], slice=click[2], client_id="quick").json()
    mask = unpacked(details["slice_mask"])
    shown = get(server, "/datastore/annotations/masks", image=CT, client_id="quick", compress=False)
    names = json.loads(requests.utils.unquote(shown.headers["X-Ssmsam-Labels"]))
    array = np.frombuffer(shown.content.split(b"\n\n", 1)[1], np.uint8).reshape(ct.grid.shape)
    np.testing.assert_array_equal(array[click[2]] == names["spleen"], mask > 0)


@pytest.mark.parametrize(
    ("model", "output", "params", "said"),
    [
        ("sam_2d", "image", {"answer": "slice"}, "output=json"),
        ("sam_3d", "json", {"answer": "slice"}, "sam_2d"),
        ("sam_2d", "json", {"answer": "slices"}, "'slice' or 'volume'"),
        ("sam_2d", "json", {"answer": ["slice"]}, "'slice' or 'volume'"),
        ("sam_2d", "json", {"answer": "slice", "save_label": True}, "save_label"),
    ],
)
def test_what_cannot_be_one_slice(server: Server, model: str, output: str, params: dict[str, Any], said: str) -> None:
    query, form = {"image": CT, "output": output}, {"params": json.dumps({"foreground": [[80, 80, 20]], **params})}
    answer = requests.post(f"{server.url}/infer/{model}", params=query, data=form, timeout=60)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("image", [*STORED, MR])
def test_a_first_look(server: Server, studies: Path, image: str) -> None:
    volume = read_volume(place_of(studies, image))
    answer = get(server, "/studies/picture", image=image, slice=7)
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert pixels.shape == volume.shape[1:]
    assert (answer.headers["X-Ssmsam-Slice"], answer.headers["X-Ssmsam-Count"]) == ("7", str(volume.shape[0]))
    assert "".join(answer.headers["X-Ssmsam-Towards"].split()[::-1]) == axis_codes(volume.grid)[:2]
    brighter = volume.array[7].ravel().argsort()
    assert (np.diff(pixels.ravel()[brighter].astype(int)) >= 0).all()
    assert get(server, "/studies/picture", image=image).headers["X-Ssmsam-Slice"] == str(volume.shape[0] // 2)
    assert get(server, "/studies/picture", image=image, slice=999).status_code == 422
    small = Image.open(io.BytesIO(get(server, "/studies/thumbnail", image=image).content))
    assert max(small.size) == 128


@pytest.mark.parametrize("image", [*STORED, MR])
def test_the_image_without_compression(server: Server, studies: Path, image: str) -> None:
    volume = read_volume(place_of(studies, image))
    answer = get(server, "/studies/image", image=image, client_id="page")
    assert len(answer.content) == int(answer.headers["Content-Length"])
    read = nib.Nifti1Image.from_bytes(answer.content)
    np.testing.assert_array_equal(np.asanyarray(read.dataobj).T, volume.array)
    np.testing.assert_allclose(read.affine, np.diag([-1, -1, 1, 1]) @ volume.affine, atol=1e-3)


# --- states, review, exports: on a server of their own, for annotations stay


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A series of DICOM files with a report beside them, and an MR as a file."""
    studies = tmp_path_factory.mktemp("reviewed")
    copy_of(MR, studies)
    shutil.copytree(SAMPLES / "abdomen_dicom" / CT, studies / SERIES)
    drawn = report(images(studies / SERIES), [("POLYLINE", 5, np.array([[30.0, 40.0], [50.0, 44.0]]))])
    drawn.save_as(studies / SERIES / "report.dcm", write_like_original=False)
    running = Server(studies=studies, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false", **SMALL})
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def row(server: Server, image: str) -> dict[str, Any]:
    return next(one for one in get(server, "/studies").json()["studies"] if one["image"] == image)


def review(server: Server, image: str, verdict: str, **params: str) -> requests.Response:
    asked = {"image": image, "verdict": verdict, "client_id": "second", **params}
    return requests.post(f"{server.url}/studies/review", params=asked, timeout=60)


def submit(server: Server, image: str, truth: np.ndarray, file: Path, client: str, tag: str = "final") -> None:
    grid = read_grid(server.studies / SERIES)
    write_volume(Volume(truth.astype(np.uint8), grid.affine), file)
    known = np.flatnonzero(truth.any(axis=(1, 2))).tolist()
    said = {
        "label_info": [{"name": "liver", "idx": 1}],
        "client_id": client,
        "partial": {"slices": {"liver": {"annotated": known}}, "complete": tag == "final"},
    }
    with file.open("rb") as opened:
        answer = requests.put(
            f"{server.url}/datastore/label", params={"image": image, "tag": tag}, timeout=60,
            files={"label": (file.name, opened)}, data={"params": json.dumps(said)},
        )  # fmt: skip
    assert answer.status_code == 200, answer.text


def test_a_study_is_reviewed_and_exported(reviewed: Server, ct: Truth, tmp_path: Path) -> None:
    series = read_volume(reviewed.studies / SERIES)
    truth = resampled(ct.mask("liver"), ct.grid, series.grid)
    assert row(reviewed, SERIES)["state"] == "new"
    assert review(reviewed, SERIES, "accept").status_code == 409
    submit(reviewed, SERIES, truth, tmp_path / "mask.nii.gz", "first")
    assert row(reviewed, SERIES)["state"] == "to review"
    assert review(reviewed, SERIES, "send_back").status_code == 422
    assert review(reviewed, SERIES, "perhaps").status_code == 422
    back = review(reviewed, SERIES, "send_back", note="the dome is missing")
    assert back.json()["state"] == "in work", back.text
    assert "the dome is missing" in row(reviewed, SERIES)["review"]["note"]

    smaller = truth.copy()
    smaller[:, : truth.shape[1] // 2] = False
    submit(reviewed, SERIES, smaller, tmp_path / "mask.nii.gz", "third", tag="partial")
    (agreed,) = get(reviewed, "/studies/agreement", image=SERIES).json()["agreement"]
    assert agreed["clients"] == ["first", "third"]
    shared = smaller.any(axis=(1, 2))
    assert agreed["dice"] == pytest.approx(dice(truth[shared], smaller[shared]), abs=1e-3)

    submit(reviewed, SERIES, truth, tmp_path / "mask.nii.gz", "first")
    accepted = review(reviewed, SERIES, "accept")
    assert accepted.json()["state"] == "finished", accepted.text
    found = row(reviewed, SERIES)
    assert {one["client"] for one in found["workers"] if one["annotated"]} == {"first", "third"}
    assert found["review"]["client"] == "second"

    for format, suffix in (("nifti", ".nii.gz"), ("nrrd", ".nrrd"), ("dicom_seg", ".dcm"), ("rtstruct", ".dcm")):
        answer = get(reviewed, "/studies/export", image=SERIES, format=format)
        assert answer.status_code == 200, answer.text
        file = tmp_path / f"{format}{suffix}"
        file.write_bytes(answer.content)
        if format == "rtstruct":
            mask = read_rtstruct(file, series.grid)["liver"]
        elif format == "dicom_seg":
            mask = read_seg(file, series.grid).volume.array > 0
        else:
            mask = read_volume(file).array > 0
        np.testing.assert_array_equal(mask, truth, err_msg=format)
    assert "choose one of" in get(reviewed, "/studies/export", image=SERIES, format="stl").json()["detail"]
    assert get(reviewed, "/studies/export", image=MR).status_code == 422

    packed = ZipFile(io.BytesIO(get(reviewed, "/studies/dataset").content))
    names = {name.partition("/")[2] for name in packed.namelist()}
    assert names == {"dataset.json", "export.json", f"imagesTr/{SERIES}_0000.nii.gz", f"labelsTr/{SERIES}.nii.gz"}
    content = json.loads(packed.read("Dataset001_ssmsam/dataset.json"))
    assert (content["channel_names"], content["labels"]) == ({"0": "CT"}, {"background": 0, "liver": 1})


def test_measurements_are_prompts(reviewed: Server) -> None:
    (found,) = get(reviewed, "/studies/measurements", image=SERIES).json()["measurements"]
    assert (found["kind"], found["source"], found["slice"]) == ("line", "SR", 5)
    answer = clicked(reviewed.url, SERIES, **found["prompts"])
    assert answer.status_code == 200, answer.text
    assert unpacked(answer.json()["slice_mask"])[42, 40] == 1
    assert get(reviewed, "/studies/measurements", image=MR).json()["measurements"] == []


def test_strokes_in_millimetres_and_voxels(reviewed: Server) -> None:
    grid = read_grid(reviewed.studies / SERIES)
    outline = [[30, 40, 6], [60, 40, 6], [60, 60, 6], [30, 60, 6]]
    lps = grid.to_lps(np.array(outline)).tolist()
    ras = [[-x, -y, z] for x, y, z in lps]
    masks = [
        unpacked(clicked(reviewed.url, SERIES, lasso=[stroke], client_id=str(number)).json()["slice_mask"])
        for number, stroke in enumerate(
            ({"points": outline}, {"points": lps, "space": "lps"}, {"points": ras, "space": "ras"})
        )
    ]
    assert masks[0].any()
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
    refused = clicked(reviewed.url, SERIES, scribbles=[{"points": [[1, 2, 3], [1, 2, 4]]}])
    assert (refused.status_code, "one slice" in refused.json()["detail"]) == (422, True)


def test_answers_name_the_page(reviewed: Server) -> None:
    address = f"{reviewed.url}/annotate?image={SERIES}"
    details = clicked(reviewed.url, SERIES, foreground=[[40, 42, 5]]).json()
    assert details["page"] == address
    assert requests.get(address, timeout=60).status_code == 200
