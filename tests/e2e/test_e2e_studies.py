"""What a page asks for beside masks: quick answers, first looks, states, review and exports, on the real server."""

from __future__ import annotations

import io
import json
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image
from sample_cases import CT, MR, Truth
from serving import Server
from viewers import slicer

from ssmsam.reading import read_grid, read_volume
from ssmsam.volume.geometry import axis_codes

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
