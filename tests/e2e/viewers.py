"""Requests as the viewers send them, byte for byte where it matters, and their answers read as they read them."""

from __future__ import annotations

import email.message
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
import SimpleITK as sitk
from requests_toolbelt.multipart.decoder import MultipartDecoder

TIMEOUT = 120


@dataclass(frozen=True)
class Answer:
    """What came back. ``mask`` is (slices, rows, columns)."""

    mask: np.ndarray
    params: dict[str, Any]
    file: bytes
    name: str


def slicer(
    url: str, model: str, image: str, *, session: str = "", scribbles: Path | None = None, **params: Any
) -> Answer:
    """3D Slicer: hand-made multipart with a fixed boundary and full paths as file names; multipart comes back."""
    boundary = "----------lImIt_of_THE_fIle_eW_$"
    settings = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz", **params}
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(settings)}\r\n'.encode()
    ]
    if scribbles is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="label"; filename="{scribbles}"\r\n'
        kind = "Content-Type: application/octet-stream\r\n\r\n"
        parts += [(head + kind).encode(), scribbles.read_bytes(), b"\r\n"]
    body = b"".join([*parts, f"--{boundary}--\r\n\r\n".encode()])
    response = requests.post(
        f"{url}/infer/{model}",
        params={"image": image, **({"session_id": session} if session else {})},
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        timeout=TIMEOUT,
    )
    assert response.status_code == 200, f"Status: {response.status_code}; Response: {response.text}"
    fields = _multipart(response)
    assert set(fields) == {"params", "image"}
    name, content = fields["image"]
    return Answer(read_mask(content, name), json.loads(fields["params"][1]), content, name)


def ohif(url: str, model: str, image: str, /, **params: Any) -> Answer:
    """OHIF: only a params field, ``output=image``; the raw file comes back and nothing else."""
    settings = {
        "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False,
        **params,
    }  # fmt: skip
    response = requests.post(
        f"{url}/infer/{model}",
        params={"image": image, "output": "image"},
        files={"params": (None, json.dumps(settings))},
        timeout=TIMEOUT,
    )
    assert response.status_code == 200, response.text
    return Answer(read_mask(response.content, "mask.nrrd"), {}, response.content, "mask.nrrd")


def refused(url: str, model: str, image: str, **params: Any) -> tuple[int, Any]:
    """The status and the detail of a request that should not work."""
    response = requests.post(
        f"{url}/infer/{model}", params={"image": image}, files={"params": (None, json.dumps(params))}, timeout=TIMEOUT
    )
    return response.status_code, response.json().get("detail")


def nrrd_header(file: bytes) -> dict[str, str]:
    """The header of an NRRD file."""
    lines = file[: file.index(b"\n\n")].decode().splitlines()[1:]
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def read_mask(content: bytes, name: str) -> np.ndarray:
    suffix = "".join(Path(name).suffixes)
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        return sitk.GetArrayFromImage(sitk.ReadImage(file.name))


def _multipart(response: requests.Response) -> dict[str, tuple[str, bytes]]:
    """Field name -> (file name, content)."""
    fields = {}
    for part in MultipartDecoder.from_response(response).parts:
        head = email.message.Message()
        head["content-disposition"] = part.headers[b"Content-Disposition"].decode()
        fields[str(head.get_param("name", header="content-disposition"))] = (head.get_filename() or "", part.content)
    return fields


def slicer_submit(
    url: str, image: str, mask: np.ndarray, names: list[str], folder: Path, **more: Any
) -> dict[str, Any]:
    """3D Slicer's *Submit Label*: the segments exported on the image as it was downloaded, values by position.

    ``more`` replaces parameters; a label_info of its own stands for segments that are listed but not saved.
    """
    downloaded = folder / f"{image}.nii.gz"
    response = requests.get(f"{url}/datastore/image", params={"image": image}, timeout=TIMEOUT)
    response.raise_for_status()
    downloaded.write_bytes(response.content)
    exported = sitk.GetImageFromArray(mask.astype(np.uint8))
    exported.CopyInformation(sitk.ReadImage(str(downloaded)))
    file = folder / "tmpsubmit.nii.gz"
    sitk.WriteImage(exported, str(file), useCompression=True)
    info = [{"name": name, "idx": number} for number, name in enumerate(names, start=1)]
    params = {"label_info": info, "model": "", "client_id": "user-xyz", **more}
    boundary = "----------lImIt_of_THE_fIle_eW_$"
    body = b"".join(
        [
            f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n'.encode(),
            f'--{boundary}\r\nContent-Disposition: form-data; name="label"; filename="{file}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            file.read_bytes(),
            f"\r\n--{boundary}--\r\n\r\n".encode(),
        ]
    )
    response = requests.put(
        f"{url}/datastore/label",
        params={"image": image},
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        timeout=TIMEOUT,
    )
    assert response.status_code == 200, f"Status: {response.status_code}; Response: {response.text}"
    return response.json()


def submit_slices(
    url: str, image: str, file: Path, values: dict[str, int], known: Sequence[int], *, client: str = "reader"
) -> None:
    """A script's submission: a mask file whose slices ``known`` are truth for each label."""
    said = {
        "label_info": [{"name": name, "idx": value} for name, value in values.items()],
        "client_id": client,
        "partial": {"slices": {name: {"annotated": list(known)} for name in values}},
    }
    with file.open("rb") as opened:
        response = requests.put(
            f"{url}/datastore/label",
            params={"image": image, "tag": "partial"},
            files={"label": (file.name, opened)},
            data={"params": json.dumps(said)},
            timeout=TIMEOUT,
        )
    assert response.status_code == 200, response.text


def stored_label(url: str, image: str, tag: str) -> tuple[np.ndarray, dict[str, int]]:
    """A stored label's voxels and what they mean."""
    about = {"label": image, "tag": tag}
    file = requests.get(f"{url}/datastore/label", params=about, timeout=TIMEOUT)
    info = requests.get(f"{url}/datastore/label/info", params=about, timeout=TIMEOUT)
    assert file.status_code == info.status_code == 200, (file.text, info.text)
    name = re.findall('filename="(.+)"', file.headers["content-disposition"])[0]
    return read_mask(file.content, name), {entry["name"]: entry["idx"] for entry in info.json()["label_info"]}
