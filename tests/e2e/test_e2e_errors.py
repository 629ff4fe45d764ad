"""What a user does wrong is said; what nobody may do is refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import requests
from sample_cases import CT, MR, Truth
from serving import Server
from viewers import ohif

from ssmsam.reading import read_grid

PARAMS = {"params": (None, json.dumps({"foreground": [[80, 80, 20]]}))}
CANARY = "the-content-of-a-secret-file"


@pytest.fixture(scope="module")
def secret(studies: Path) -> Path:
    """A readable image and a text that lie beside the studies, not in them."""
    outside = studies.parent / "outside"
    outside.mkdir()
    (outside / "secret.nii.gz").write_bytes((studies / f"{MR}.nii.gz").read_bytes())
    (outside / "secret.txt").write_text(CANARY)
    return outside


@pytest.mark.parametrize(
    ("path", "sent", "status", "word"),
    [
        ("/infer/nope?image=ct_01", {"files": PARAMS}, 404, "sam_2d"),
        ("/infer/sam_2d?image=nope", {"files": PARAMS}, 404, "nope"),
        ("/infer/sam_2d?image=", {"files": PARAMS}, 422, "image"),
        ("/infer/sam_2d", {"files": PARAMS}, 422, "image"),
        ("/infer/sam_2d?image=ct_01", {"files": {"params": (None, "{broken")}}, 422, "JSON"),
        ("/infer/sam_2d?image=ct_01", {"files": {"params": (None, "[1, 2]")}}, 422, "object"),
        ("/infer/sam_2d?image=ct_01&output=nothing", {"files": PARAMS}, 422, "output"),
        ("/infer/sam_2d?image=ct_01&output=dicom_seg", {"files": PARAMS}, 422, "DICOMweb"),
        ("/infer/sam_2d?session_id=00000000-0000-0000-0000-000000000000", {"files": PARAMS}, 404, "session"),
        ("/infer/sam_2d", {"files": {**PARAMS, "file": ("x.exe", b"MZ")}}, 422, ".nii.gz"),
        ("/infer/sam_2d", {"files": {**PARAMS, "file": ("x.nii.gz", b"not gzip")}}, 422, "uploaded image"),
        ("/activelearning/nope", {"json": {}}, 404, "first"),
        ("/train/nope", {"json": {}}, 404, "nope"),
        ("/scoring/nope", {"json": {}}, 404, "nope"),
        ("/batch/infer/nope", {"json": {}}, 404, "sam_2d"),
        ("/proxy/dicom/wado/studies", {}, 404, "folder"),
    ],
)
def test_a_wrong_request(server: Server, path: str, sent: dict[str, Any], status: int, word: str) -> None:
    response = requests.post(server.url + path, timeout=60, **sent)
    assert response.status_code == status, response.text
    assert word in str(response.json()["detail"])


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"foreground": [[9999, 10, 10]]}, "outside"),
        ({"foreground": [[10, 10, -3]]}, "outside"),
        ({"foreground": [[10]]}, "[i, j, k]"),
        ({"foreground": "none"}, "JSON"),
        ({"foreground": [[80, 80, 20]], "roi": [1, 2, 3]}, "roi"),
        ({"foreground": [[80, 80, 20]], "result_extension": ".exe"}, "result_extension"),
        ({"foreground": [[80, 80, 20]], "result_dtype": "object"}, "result_dtype"),
        ({"foreground": [[80, 80, 20]], "save_label": True, "label_tag": "../../escaped"}, "tag"),
    ],
)
def test_wrong_prompts(server: Server, params: dict[str, Any], word: str) -> None:
    response = requests.post(
        f"{server.url}/infer/sam_2d?image={CT}", files={"params": (None, json.dumps(params))}, timeout=60
    )
    assert response.status_code == 422, response.text
    assert word in response.json()["detail"]


def names_outside(secret: Path) -> list[str]:
    file = secret / "secret.nii.gz"
    return [
        str(file), str(secret), "/etc/passwd", "/", ".", "..", "../outside/secret.nii.gz", "../outside/secret",
        "./ct_01", "ct_01/../ct_01", "..\\outside\\secret", f"file://{file}", "ct_01.nii.gz", "labels", "\x00",
    ]  # fmt: skip


def test_no_route_takes_a_path_for_an_image(server: Server, secret: Path) -> None:
    url = server.url
    with requests.Session() as web:
        for name in names_outside(secret):
            answers = [
                web.post(f"{url}/infer/sam_2d", params={"image": name}, files=PARAMS),
                web.post(f"{url}/infer/sam_2d", params={"image": "", "session_id": name}, files=PARAMS),
                web.post(f"{url}/infer/wsi/sam_2d", params={"image": name}, json={}),
                web.post(f"{url}/infer/wsi_v2/sam_2d", params={"image": name}, files={"wsi": (None, "{}")}),
                web.get(f"{url}/datastore/image", params={"image": name}),
                web.head(f"{url}/datastore/image", params={"image": name}),
                web.get(f"{url}/datastore/image/info", params={"image": name}),
                web.put(f"{url}/datastore/image/info", params={"image": name}, data={"info": "{}"}),
                web.delete(f"{url}/datastore/image", params={"id": name}),
                web.delete(f"{url}/datastore/", params={"id": name}),
                web.get(f"{url}/datastore/label", params={"label": name, "tag": "final"}),
                web.get(f"{url}/datastore/label", params={"label": CT, "tag": name}),
                web.head(f"{url}/datastore/label", params={"image": name, "tag": "final"}),
                web.delete(f"{url}/datastore/label", params={"id": name, "tag": "final"}),
                web.delete(f"{url}/datastore/label", params={"id": CT, "tag": name}),
                web.get(f"{url}/datastore/label/info", params={"label": name, "tag": "final"}),
                web.put(f"{url}/datastore/label/info", params={"label": name, "tag": "x"}, data={"info": "{}"}),
                web.put(f"{url}/datastore/updatelabelinfo", params={"label": name, "tag": "x"}),
                web.put(f"{url}/datastore/label", params={"image": name}, files={"label": ("x.nii.gz", b"x")}),
                web.post(f"{url}/batch/infer/sam_2d", params={"run_sync": True}, json={"images": [name]}),
                web.get(f"{url}/session/x{requests.utils.quote(name, safe='')}"),
                web.delete(f"{url}/session/x{requests.utils.quote(name, safe='')}"),
            ]
            for answer in answers:
                where = f"{answer.request.method} {answer.request.url}"
                assert 400 <= answer.status_code < 500, (where, answer.status_code)
                assert CANARY.encode() not in answer.content
    assert (secret / "secret.nii.gz").exists()


def test_params_cannot_replace_what_the_route_was_given(server: Server, secret: Path, ct: Truth) -> None:
    """MONAI Label lets params overwrite image and model."""
    params = {"foreground": [[80, 80, 20]], "image": str(secret / "secret.nii.gz"), "model": "fewshot"}
    answer = ohif(server.url, "sam_2d", CT, **params)
    assert answer.mask.shape == ct.grid.shape
    assert answer.mask.shape != read_grid(secret / "secret.nii.gz").shape
    refused = requests.post(
        f"{server.url}/infer/sam_2d", params={"image": ""}, files={"params": (None, json.dumps(params))}, timeout=60
    )
    assert refused.status_code == 422


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b", "..", ".hidden", "datastore_v2.json/../x"])
def test_nothing_is_written_outside_the_studies(server: Server, studies: Path, name: str) -> None:
    before = sorted(studies.parent.rglob("*"))
    sent = {"file": ("x.nii.gz", b"not an image")}
    for path in ("/datastore/", "/datastore/image"):
        response = requests.put(server.url + path, params={"image": name}, files=sent, timeout=30)
        assert response.status_code == 422, response.text
    label = requests.put(
        f"{server.url}/datastore/label", params={"image": CT, "tag": name}, files={"label": sent["file"]}, timeout=30
    )
    assert label.status_code == 422
    assert sorted(studies.parent.rglob("*")) == before


@pytest.mark.parametrize("sent", [b"", b"not an image"])
def test_an_upload_that_is_no_image_is_refused(server: Server, studies: Path, sent: bytes) -> None:
    response = requests.put(f"{server.url}/datastore/image", files={"file": ("fresh.nii.gz", sent)}, timeout=30)
    assert response.status_code == 422
    assert response.json()["detail"].startswith("fresh.nii.gz: not a readable NIfTI file")
    assert not list(studies.glob("fresh*"))


def test_the_datastore_s_own_record_cannot_be_uploaded(server: Server, studies: Path) -> None:
    before = (studies / "datastore_v2.json").read_bytes()
    forged = json.dumps({"name": "x", "description": "", "images_dir": "/etc", "objects": {}}).encode()
    response = requests.put(
        f"{server.url}/datastore/image",
        params={"image": "datastore_v2"},
        files={"file": ("x.json", forged)},
        timeout=30,
    )
    assert response.status_code == 422
    assert (studies / "datastore_v2.json").read_bytes() == before


def test_an_archive_cannot_leave_its_session(server: Server) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("link.nii.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    response = requests.put(
        f"{server.url}/session/", params={"uncompress": True}, files={"files": ("x.tar", packed.getvalue())}, timeout=30
    )
    assert response.status_code == 422, response.text


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_cannot_fill_the_disk(server: Server, kind: str) -> None:
    """A thousand times as much as was sent: what a file of zeros becomes."""
    packed, nothing = io.BytesIO(), bytes(2**20)
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb, bomb.open("zeros.nii", "w") as file:
            for _ in range(400):
                file.write(nothing)
    else:
        with gzip.open(packed, "w") as squeezed, tarfile.open(fileobj=squeezed, mode="w|") as bomb:
            zeros = tarfile.TarInfo("zeros.nii")
            zeros.size = 2**20
            for _ in range(400):
                bomb.addfile(zeros, io.BytesIO(nothing))
    assert len(packed.getvalue()) < 2**20
    sent = {"files": (f"x.{kind}", packed.getvalue())}
    response = requests.put(f"{server.url}/session/", params={"uncompress": True}, files=sent, timeout=60)
    assert response.status_code == 422 and "MB" in response.json()["detail"]


def test_the_log_is_a_page_that_loads_nothing_and_cannot_be_abused(server: Server) -> None:
    page = requests.get(f"{server.url}/logs/", params={"lines": 5, "refresh": 10}, timeout=30)
    assert page.status_code == 200 and "<pre>" in page.text and "src=" not in page.text and "href=" not in page.text
    assert requests.get(f"{server.url}/logs/", params={"text": True}, timeout=30).text.count("\n") <= 300
    for lines in (-1, 10**30):
        assert requests.get(f"{server.url}/logs/", params={"lines": lines}, timeout=30).status_code == 422


def test_a_folder_as_a_sessions_image_is_not_sent_back(server: Server, studies: Path) -> None:
    files = [("files", (file.name, file.read_bytes())) for file in sorted((studies / "ct_series").iterdir())[:2]]
    session = requests.put(f"{server.url}/session/", files=files, timeout=60).json()["session_id"]
    asked = requests.get(f"{server.url}/session/{session}", params={"image": True}, timeout=30)
    assert asked.status_code == 422 and "folder" in asked.json()["detail"]


def test_the_server_cannot_be_made_to_load_itself_again(server: Server) -> None:
    assert requests.post(f"{server.url}/reload", timeout=30).status_code == 404


def test_an_unforeseen_error_is_json_without_paths(server: Server, studies: Path) -> None:
    broken = studies / "broken.nii.gz"
    broken.write_bytes(b"not an image")
    try:
        response = None
        for _ in range(50):
            response = requests.post(f"{server.url}/infer/sam_2d", params={"image": "broken"}, files=PARAMS, timeout=30)
            if response.status_code != 404:  # the folder's watcher needs a moment
                break
        assert response is not None
        assert response.status_code == 422
        assert "broken" in response.json()["detail"]
        assert str(studies) not in response.text
    finally:
        broken.unlink()


def test_temporary_files_go_whether_or_not_the_request_works(server: Server, studies: Path) -> None:
    temporary = server.home / "tmp"
    before = {path.name for path in temporary.iterdir()}
    for params, name in (({"foreground": [[80, 80, 20]]}, "x.nii.gz"), ({"foreground": []}, "x.nii.gz"), ({}, "x.exe")):
        with (studies / f"{CT}.nii.gz").open("rb") as file:
            sent = {"params": (None, json.dumps(params)), "file": (name, file)}
            requests.post(f"{server.url}/infer/sam_2d", files=sent, timeout=60)
    assert {path.name for path in temporary.iterdir()} <= before
