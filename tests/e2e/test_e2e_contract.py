"""What the viewers read from the answers."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from sample_cases import CT, MR, SLICE_DICE, VOLUME_DICE, Truth, dice
from serving import Server
from viewers import nrrd_header, ohif, read_mask, slicer


def test_info_is_what_both_viewers_can_read(server: Server) -> None:
    info = server.info()
    assert isinstance(info["labels"], list)
    assert info["labels"]
    assert all(isinstance(label, str) for label in info["labels"])
    assert "background" not in info["labels"]
    assert not info.get("config")  # Slicer takes a top-level config for an old server
    assert info["strategies"]
    dimensions = {"sam_2d": 2, "sam_3d": 3, "accept_slice": 2, "empty_slice": 2, "finish_volume": 2}
    dimensions |= {"withdraw_slice": 2, "undo": 2, "fewshot": 3, "uncertainty_map": 3, "ssm_sam": 3}
    types = {"fewshot": "segmentation", "ssm_sam": "segmentation", "uncertainty_map": "others"}
    assert {name: model["dimension"] for name, model in info["models"].items()} == dimensions
    for name, model in info["models"].items():
        assert model["type"] == types.get(name, "deepgrow")
        if types.get(name) == "segmentation":
            assert list(model["labels"].values()) == list(range(1, len(model["labels"]) + 1))
        else:
            assert model["labels"] == []  # viewers then offer all labels of the app
        assert model["description"]
        values = [
            first for value in model["config"].values() for first in (value if isinstance(value, list) else [value])
        ]
        assert all(isinstance(value, bool | int | float | str) for value in values)
        assert not set(model["config"]) & {*info["labels"], "foreground", "background", "label", "roi", "slice"}
    assert info["datastore"]["total"] >= 6
    assert json.loads(json.dumps(info)) == info


def test_a_click_in_slicer_comes_back_as_nrrd_on_the_image_s_grid(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    answer = slicer(server.url, "sam_2d", CT, label="liver", foreground=[click], background=[], slice=click[2])
    header = nrrd_header(answer.file)
    assert header["type"] in ("unsigned char", "uint8")
    assert header["encoding"] == "gzip" and len(answer.file) < 20_000
    assert header["sizes"].split() == [str(n) for n in ct.grid.shape[::-1]]
    assert answer.name.endswith(".nrrd")
    assert set(np.unique(answer.mask)) == {0, 1}
    assert set(np.flatnonzero(answer.mask.any(axis=(1, 2)))) == {click[2]}
    assert answer.params["label_names"] == {"liver": 1}
    assert answer.params["latencies"]["total"] > 0
    assert abs(answer.params["centroids"]["liver"][2] - click[2]) <= 1


def test_the_same_click_in_ohif_gives_the_same_mask(server: Server, ct: Truth) -> None:
    click = ct.click("spleen")
    ours = slicer(server.url, "sam_2d", CT, label="spleen", foreground=[click], background=[], slice=click[2])
    theirs = ohif(server.url, "sam_2d", CT, foreground=[click], background=[])
    assert nrrd_header(theirs.file)["encoding"] == "raw"
    np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_monai_label_s_own_client(server: Server, ct: Truth, tmp_path: Path) -> None:
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="reader-a")
    assert client.info()["models"]
    click = ct.click("liver")
    file, params = client.infer("sam_3d", CT, {"foreground": [click], "label": "liver"})
    mask = read_mask(Path(file).read_bytes(), file)
    assert mask.shape == ct.grid.shape
    assert params["slices_prompted"] == [click[2]]
    with pytest.raises(MONAILabelClientException) as refused:
        client.infer("sam_2d", CT, {"foreground": [[9999, 0, 0]]})
    assert "outside the volume" in refused.value.msg  # this text reaches the user


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_result_settings_are_kept(server: Server, ct: Truth, suffix: str, dtype: str) -> None:
    click = ct.click("liver")
    answer = slicer(
        server.url, "sam_2d", CT, foreground=[click], slice=click[2], result_extension=suffix, result_dtype=dtype
    )
    assert answer.name.endswith(suffix)
    assert answer.mask.dtype == dtype
    assert answer.mask.shape == ct.grid.shape


def test_compression_on_request(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    answer = slicer(server.url, "sam_2d", CT, foreground=[click], slice=click[2], result_compress=True)
    assert nrrd_header(answer.file)["encoding"] == "gzip"


def test_json_only_on_request(server: Server, ct: Truth) -> None:
    response = requests.post(
        f"{server.url}/infer/sam_2d",
        params={"image": CT, "output": "json"},
        files={"params": (None, json.dumps({"foreground": [ct.click("liver")]}))},
        timeout=60,
    )
    assert response.headers["content-type"] == "application/json"
    assert response.json()["label_names"] == {"object": 1}


@pytest.mark.parametrize("name", [CT, MR])
def test_one_click_finds_the_kidney(server: Server, name: str) -> None:
    """CT in Hounsfield units and MR far beyond 255 both reach the network as sensible grey values."""
    truth = Truth.of(name)
    click = truth.click("right kidney")
    on_slice = slicer(
        server.url, "sam_2d", name, label="right kidney", foreground=[click], slice=click[2], client_id="once"
    )
    assert dice(on_slice.mask[click[2]] > 0, truth.mask("right kidney")[click[2]]) > SLICE_DICE
    whole = slicer(server.url, "sam_3d", name, label="right kidney", foreground=[click], client_id="whole")
    assert dice(whole.mask > 0, truth.mask("right kidney")) > VOLUME_DICE


def test_session_images(server: Server, studies: Path, ct: Truth, tmp_path: Path) -> None:
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="reader-b")
    session = client.create_session(str(studies / f"{CT}.nii.gz"))["session_id"]
    click = ct.click("liver")
    answer = slicer(server.url, "sam_2d", "", session=session, label="liver", foreground=[click], slice=click[2])
    stored = slicer(server.url, "sam_2d", CT, label="liver", foreground=[click], slice=click[2], client_id="other")
    np.testing.assert_array_equal(answer.mask, stored.mask)
    assert client.get_session(session)
    client.remove_session(session)
    assert requests.get(f"{server.url}/session/{session}", timeout=10).status_code == 404


@pytest.mark.parametrize("packed", [True, False])
def test_a_session_of_dicom_files(server: Server, studies: Path, ct: Truth, packed: bool) -> None:
    files = sorted((studies / "ct_series").iterdir())
    if packed:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as into:
            for file in files:
                into.write(file, f"series/{file.name}")
        sent = [("files", ("series.zip", archive.getvalue()))]
    else:
        sent = [("files", (file.name, file.read_bytes())) for file in files]
    response = requests.put(f"{server.url}/session/", params={"uncompress": packed}, files=sent, timeout=60)
    assert response.status_code == 200, response.text
    session = response.json()["session_id"]
    answer = slicer(server.url, "sam_2d", "", session=session, foreground=[[80, 80, 20]], slice=20)
    assert answer.mask.shape == ct.grid.shape


def test_uploaded_file(server: Server, studies: Path, ct: Truth) -> None:
    click = ct.click("liver")
    with (studies / f"{CT}.nii.gz").open("rb") as file:
        response = requests.post(
            f"{server.url}/infer/sam_2d",
            params={"output": "json"},
            files={"params": (None, json.dumps({"foreground": [click]})), "file": ("any.where.nii.gz", file)},
            timeout=60,
        )
    assert response.status_code == 200, response.text
    assert response.json()["slice"] == click[2]


def test_submit_and_next_sample(server: Server, studies: Path, ct: Truth, tmp_path: Path) -> None:
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="reader-a")
    first = client.next_sample("first", {})
    assert first["id"] == CT
    assert first["name"].endswith(".nii.gz")
    offered = client.next_sample("random", {})["id"]
    assert offered in client.datastore()["objects"]
    click = ct.click("liver")
    file, _ = client.infer("sam_2d", MR, {"foreground": [click], "label": "liver"})
    info = {"label_info": [{"name": "liver", "idx": 1}]}
    saved = client.save_label(MR, file, tag="final", params=info)
    assert saved["label"] == MR
    assert read_mask(Path(client.download_label(MR, "final")).read_bytes(), "x.nii.gz").any()
    assert client.datastore()["objects"][MR]["labels"]["final"]["info"]["label_info"] == info["label_info"]
    assert MR not in {client.next_sample("random", {})["id"] for _ in range(20)}
    requests.delete(f"{server.url}/datastore/label", params={"id": MR, "tag": "final"}, timeout=10).raise_for_status()


def test_a_mask_is_kept_on_request(server: Server, ct: Truth, tmp_path: Path) -> None:
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="reader-c")
    file, params = client.infer("sam_2d", CT, {"foreground": [ct.click("liver")], "label": "liver", "save_label": True})
    kept = client.datastore()["objects"][CT]["labels"]["original"]["info"]
    assert kept["params"]["label_names"] == params["label_names"] == {"liver": 1}
    stored = client.download_label(CT, "original")
    answered, downloaded = (read_mask(Path(path).read_bytes(), path) for path in (file, stored))
    np.testing.assert_array_equal(answered, downloaded)
    requests.delete(f"{server.url}/datastore/label", params={"id": CT, "tag": "original"}, timeout=10)


def test_images_come_and_go(server: Server, studies: Path, ct: Truth, tmp_path: Path) -> None:
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    assert client.upload_image(str(studies / f"{CT}.nii.gz"), "new case (1)") == {"image": "new case (1)"}
    answer = slicer(server.url, "sam_2d", "new case (1)", foreground=[ct.click("liver")])
    assert answer.mask.any()
    address = f"{server.url}/datastore/image"
    assert requests.head(address, params={"image": "new case (1)"}, timeout=10).status_code == 200
    requests.delete(address, params={"id": "new case (1)"}, timeout=10).raise_for_status()
    server.wait_for(
        lambda info: requests.head(address, params={"image": "new case (1)"}, timeout=10).status_code == 404
    )


def test_a_folder_of_dicom_files_downloads_as_one_file(server: Server, ct: Truth) -> None:
    response = requests.get(f"{server.url}/datastore/image", params={"image": "ct_series"}, timeout=60)
    assert response.status_code == 200
    assert "ct_series.nii.gz" in response.headers["content-disposition"]
    assert read_mask(response.content, "x.nii.gz").shape == ct.grid.shape
