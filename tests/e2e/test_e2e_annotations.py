"""A few slices annotated in a viewer: what the server makes of them, through its real interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from sample_cases import CT, MR, Truth, copy_of
from serving import Server
from viewers import nrrd_header, ohif, read_mask, refused, slicer, slicer_submit, stored_label

from ssmsam.reading import read_volume
from ssmsam.volume.writing import write_volume

SERIES = "ct_series"


@pytest.fixture(scope="module")
def desk(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose studies nobody else annotates."""
    folder = tmp_path_factory.mktemp("annotated")
    copy_of(CT, folder)
    copy_of(MR, folder)
    (folder / SERIES).symlink_to(studies / SERIES)
    running = Server(studies=folder, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers().wait_until_warm()
    finally:
        running.kill()


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is annotated when a test begins."""
    yield
    if "desk" in request.fixturenames:
        url = request.getfixturevalue("desk").url
        for image in (CT, MR, SERIES):
            requests.delete(f"{url}/datastore/annotations", params={"image": image}, timeout=30).raise_for_status()
            requests.delete(f"{url}/datastore/label", params={"id": image, "tag": "final"}, timeout=30)


def drawn(truth: Truth, *slices: int, label: str = "liver", value: int = 1) -> np.ndarray:
    """The organ as a person would draw it on some slices."""
    mask = np.zeros(truth.grid.shape, np.uint8)
    for index in slices:
        mask[index] = truth.mask(label)[index] * value
    return mask


def known(server: Server, image: str = CT) -> dict[str, Any]:
    answer = requests.get(f"{server.url}/datastore/annotations", params={"image": image}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def slices(said: dict[str, Any], label: str = "liver") -> dict[str, list[int]]:
    return said["partial"]["slices"].get(label, {"annotated": [], "empty": []})


def test_submit_get_the_same_volume_again_submit_more(desk: Server, ct: Truth, tmp_path: Path) -> None:
    k = ct.click("liver")[2]
    assert desk.info()["datastore"]["completed"] == 0
    first = slicer_submit(desk.url, CT, drawn(ct, k - 2, k), ["liver", "spleen"], tmp_path)
    assert (first["image"], first["label"], first["tag"]) == (CT, CT, "partial")
    assert first["counted"] == [f"counted as annotated: {k - 2}, {k} (liver)"]
    assert desk.info()["datastore"]["completed"] == 1  # else Slicer does not let the user train
    sample = requests.post(f"{desk.url}/activelearning/first", json={"client_id": "user-xyz"}, timeout=30).json()
    assert sample["id"] == CT
    second = slicer_submit(desk.url, CT, drawn(ct, k + 2), ["liver", "spleen"], tmp_path)  # a viewer opened anew
    assert second["counted"][0] == f"counted as annotated: {k + 2} (liver)"
    assert slices(second)["annotated"] == [k - 2, k, k + 2] and second["revision"] == 2
    mask, values = stored_label(desk.url, CT, "partial")
    assert values == {"liver": 1}
    np.testing.assert_array_equal(mask, drawn(ct, k - 2, k, k + 2))
    assert known(desk)["finished"] is False
    assert [entry["revision"] for entry in known(desk)["revisions"]] == [1, 2]


@pytest.mark.parametrize(
    ("info", "meant"),
    [
        ([{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}], {1: "spleen", 2: "liver"}),
        # a background that is listed but not saved shifts idx, not the voxels
        ([{"name": "spleen", "idx": 2}, {"name": "liver", "idx": 3}], {1: "spleen", 2: "liver"}),
        (
            [{"name": "background", "idx": 1}, {"name": "spleen", "idx": 2}, {"name": "liver", "idx": 3}],
            {1: "spleen", 2: "liver"},
        ),
        (
            [
                {"name": "spleen", "idx": 1},
                {"name": "background_scribbles", "idx": 2},
                {"name": "foreground_scribbles", "idx": 3},
                {"name": "liver", "idx": 4},
            ],
            {1: "spleen", 2: "liver"},
        ),
        ([{"name": "Leber é 肝", "idx": 1}, {"name": "new segment", "idx": 2}], {1: "Leber é 肝", 2: "new segment"}),
    ],
)
def test_the_order_of_labels(
    desk: Server, ct: Truth, tmp_path: Path, info: list[dict[str, Any]], meant: dict[int, str]
) -> None:
    k = ct.click("spleen")[2]
    sent = drawn(ct, k, label="spleen", value=1) + drawn(ct, k, label="liver", value=2)
    slicer_submit(desk.url, CT, sent, [], tmp_path, label_info=info)
    mask, values = stored_label(desk.url, CT, "partial")
    assert set(values) == set(meant.values())
    for value, name in meant.items():
        np.testing.assert_array_equal(mask == values[name], sent == value, err_msg=name)


def test_a_series_of_dicom_files(desk: Server, ct: Truth, tmp_path: Path) -> None:
    k = ct.click("liver")[2]
    answer = slicer_submit(desk.url, SERIES, drawn(ct, k), ["liver"], tmp_path)
    assert slices(answer)["annotated"] == [k]
    np.testing.assert_array_equal(stored_label(desk.url, SERIES, "partial")[0], drawn(ct, k))


def test_corrected_and_clicked_slices_count_and_predictions_do_not(desk: Server, ct: Truth, tmp_path: Path) -> None:
    click = ct.click("liver")
    served = slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click], reset_state=True)
    used = np.flatnonzero(served.mask.any(axis=(1, 2))).tolist()
    corrected = served.mask.copy()
    k = next(index for index in used if index != click[2])
    corrected[k, :2, :2] = 1
    answer = slicer_submit(desk.url, CT, corrected, ["liver"], tmp_path)
    assert slices(answer)["annotated"] == sorted({k, click[2]})
    assert any("not confirmed" in line for line in answer["counted"])
    again = slicer_submit(desk.url, CT, corrected, ["liver"], tmp_path)
    assert slices(again) == slices(answer) and again["revision"] == answer["revision"]


@pytest.mark.parametrize("descending", [False, True])
def test_a_box_from_slicer_whose_slice_is_in_millimetres(
    desk: Server, ct: Truth, tmp_path: Path, descending: bool
) -> None:
    k = ct.click("liver")[2]
    j, i = np.nonzero(ct.mask("liver")[k])
    pairs = [[int(i.min()), int(i.max())], [int(j.min()), int(j.max())], [k - 2, k + 2]]
    roi = [number for pair in pairs for number in (pair[::-1] if descending else pair)]
    answer = slicer(desk.url, "sam_2d", CT, label="liver", foreground=[], roi=roi, slice=480, reset_state=True)
    submitted = slicer_submit(desk.url, CT, answer.mask, ["liver"], tmp_path)
    assert slices(submitted)["annotated"] == [k]


@pytest.mark.parametrize("client", [None, "reader-a"])
def test_the_python_client(desk: Server, ct: Truth, tmp_path: Path, client: str | None) -> None:
    k = ct.click("liver")[2]
    web = MONAILabelClient(desk.url, tmpdir=str(tmp_path), client_id=client)
    file = tmp_path / "mask.nii.gz"
    volume = read_volume(Path(desk.studies) / f"{CT}.nii.gz")
    write_volume(volume.with_array(drawn(ct, k, k + 1)), file)
    info = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    partial = {"version": 1, "axis": 2, "slices": {"liver": {"annotated": [k], "empty": [0]}, "spleen": {"empty": [0]}}}
    said = web.save_label(CT, str(file), tag="partial", params={"label_info": info, "partial": partial})
    assert slices(said) == {"annotated": [k], "empty": [0]} and slices(said, "spleen")["empty"] == [0]
    np.testing.assert_array_equal(
        read_mask(Path(web.download_label(CT, "partial")).read_bytes(), "x.nii.gz"), drawn(ct, k)
    )
    stored = web.datastore()["objects"][CT]["labels"]["partial"]["info"]
    assert stored["label_info"] == [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    assert stored["partial"]["slices"] == said["partial"]["slices"]
    for wrong, words in (({"slices": {"liver": {"annotated": [999]}}}, "999"), ({"axis": 7}, "axis"), ("{", "JSON")):
        with pytest.raises(MONAILabelClientException) as failed:
            web.save_label(CT, str(file), params={"label_info": info, "partial": wrong})
        assert words in failed.value.msg and "422" in failed.value.msg
    assert slices(known(desk)) == slices(said)


def test_finishing_and_opening_again(desk: Server, ct: Truth, tmp_path: Path) -> None:
    k = ct.click("liver")[2]
    done = slicer_submit(desk.url, CT, drawn(ct, k, k + 1), ["liver", "spleen"], tmp_path, partial={"complete": True})
    assert done["tag"] == "final" and done["partial"]["complete"] is True
    mask, values = stored_label(desk.url, CT, "final")
    assert values == {"liver": 1}
    np.testing.assert_array_equal(mask, drawn(ct, k, k + 1))
    assert desk.info()["datastore"] | {"total": 0} == {
        "total": 0, "completed": 1, "finished": 1, "partial": 0, "label_tags": {"final": 1, "partial": 1},
    }  # fmt: skip
    sample = requests.post(f"{desk.url}/activelearning/first", json={}, timeout=30).json()
    assert sample["id"] != CT
    address, about = f"{desk.url}/datastore/annotations", {"image": CT}
    opened = requests.put(address, params=about, data={"partial": json.dumps({"reopen": True})}, timeout=30).json()
    assert opened["tag"] == "partial" and "open again: liver" in opened["counted"]
    about_label = {"label": CT, "tag": "final"}
    assert requests.get(f"{desk.url}/datastore/label", params=about_label, timeout=30).status_code == 404
    assert desk.info()["datastore"]["finished"] == 0
    sample = requests.post(f"{desk.url}/activelearning/first", json={}, timeout=30).json()
    assert sample["id"] == CT


def test_withdrawing_a_slice(desk: Server, ct: Truth, tmp_path: Path) -> None:
    k = ct.click("liver")[2]
    answer = slicer_submit(desk.url, CT, drawn(ct, k, k + 1), ["liver"], tmp_path)
    assert slices(answer)["annotated"] == [k, k + 1]
    body = {"partial": json.dumps({"slices": {"liver": {"withdraw": [k]}}})}
    answer = requests.put(f"{desk.url}/datastore/annotations", params={"image": CT}, data=body, timeout=30)
    assert answer.json()["counted"] == [f"withdrawn: {k} (liver)"]
    np.testing.assert_array_equal(stored_label(desk.url, CT, "partial")[0], drawn(ct, k + 1))
    # the same through the label's info, where a script beside Slicer says it
    about = {"label": CT, "tag": "partial"}
    info = {"info": json.dumps({"partial": {"slices": {"liver": {"withdraw": [k + 1]}}}, "client_id": "user-xyz"})}
    answer = requests.put(f"{desk.url}/datastore/label/info", params=about, data=info, timeout=30)
    assert answer.json()["partial"]["slices"] == {}
    assert requests.get(f"{desk.url}/datastore/label", params=about, timeout=30).status_code == 404


def test_a_slicer_user_accepts_and_finishes(desk: Server, ct: Truth) -> None:
    click = ct.click("liver")
    served = slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click], reset_state=True)
    k = click[2] + 1
    point = {"foreground": [ct.click("liver", k=k)], "background": [], "slice": k, "label": "liver"}
    message = slicer(desk.url, "accept_slice", CT, **point)
    assert not message.mask.any() and message.mask.shape == ct.grid.shape  # a viewer leaves its segment alone
    assert message.params["counted"] == [f"counted as annotated: {k} (liver)"]
    np.testing.assert_array_equal(stored_label(desk.url, CT, "partial")[0][k], served.mask[k])
    empty = slicer(desk.url, "empty_slice", CT, label="liver", foreground=[[3, 3, 0]], slice=0)
    assert slices(empty.params) == {"annotated": [k], "empty": [0]}
    placed = {"label": "liver", "foreground": [click], "slice": click[2], "client_id": "user-xyz"}
    status, detail = refused(desk.url, "finish_volume", CT, **placed)  # a point is placed, and the viewer runs it
    assert status == 409 and "liver on" in detail and "again within" in detail and not known(desk)["finished"]
    finished = slicer(desk.url, "finish_volume", CT, **placed)
    assert finished.params["tag"] == "final"
    receipt = finished.params["receipt"]["liver"]
    drawn_on = int(served.mask[1:].any(axis=(1, 2)).sum())
    assert (receipt["slices"], receipt["annotated"], receipt["predicted"]) == (drawn_on, 1, drawn_on - 1)
    ml = abs(np.linalg.det(ct.grid.affine[:3, :3])) * served.mask[1:].sum() / 1000
    assert receipt["ml"] == pytest.approx(ml, abs=0.1) and "folder of studies" in finished.params["stored"]
    expected = served.mask.copy()
    expected[0] = 0
    np.testing.assert_array_equal(stored_label(desk.url, CT, "final")[0], expected)


def test_an_ohif_user_accepts_and_finishes(desk: Server, ct: Truth) -> None:
    """No client id, no label: a click means what it is on, or what the options say."""
    liver, spleen = ct.click("liver"), ct.click("spleen")
    answer = ohif(desk.url, "sam_2d", CT, foreground=[liver], background=[])
    status, detail = refused(desk.url, "accept_slice", CT, foreground=[liver], background=[])
    assert status == 422 and "for_label" in detail
    message = ohif(desk.url, "accept_slice", CT, foreground=[liver], background=[], for_label="liver")
    assert not message.mask.any() and message.mask.shape == ct.grid.shape
    np.testing.assert_array_equal(stored_label(desk.url, CT, "partial")[0], answer.mask)
    whole = ohif(desk.url, "sam_3d", CT, foreground=[spleen], background=[], for_label="spleen")
    ohif(desk.url, "accept_slice", CT, foreground=[spleen], background=[])
    assert slices(known(desk), "spleen")["annotated"] == [spleen[2]]
    ohif(desk.url, "empty_slice", CT, foreground=[[3, 3, 0]], background=[])
    assert slices(known(desk), "spleen") == {"annotated": [spleen[2]], "empty": [0]}
    status, detail = refused(desk.url, "finish_volume", CT, foreground=[spleen], restore_label_idx=False)
    assert status == 409 and "spleen on" in detail and "liver stays open: only some of its slices" in detail
    ohif(desk.url, "finish_volume", CT, foreground=[spleen], background=[])
    assert known(desk)["partial"]["complete"] == ["spleen"] and not known(desk)["finished"]
    mask, values = stored_label(desk.url, CT, "partial")
    np.testing.assert_array_equal(mask[1:] == values["spleen"], whole.mask[1:] > 0)
    ohif(desk.url, "sam_3d", CT, foreground=[liver], background=[], for_label="liver")
    ohif(desk.url, "finish_volume", CT, confirm=True)
    assert set(stored_label(desk.url, CT, "final")[1]) == {"liver", "spleen"} and known(desk)["finished"] is True


def test_an_opened_image_is_an_empty_screen(desk: Server, ct: Truth) -> None:
    click, reader = ct.click("liver"), {"client_id": "reader-a"}
    slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click], **reader)
    slicer(desk.url, "accept_slice", CT, label="liver", slice=click[2], **reader)
    about = {"image": CT, "client_id": "reader-a"}
    assert requests.post(f"{desk.url}/datastore/annotations/opened", params=about, timeout=30).status_code == 200
    status, detail = refused(desk.url, "finish_volume", CT, confirm=True, **reader)
    assert status == 422 and "nothing of this image was shown" in detail
    again = requests.get(f"{desk.url}/datastore/annotations/masks", params=about, timeout=30)
    values = json.loads(unquote(again.headers["X-Ssmsam-Labels"]))
    assert (read_mask(again.content, "masks.nrrd") == values["liver"]).any(axis=(1, 2)).sum() > 1
    finished = slicer(desk.url, "finish_volume", CT, confirm=True, **reader)
    assert finished.params["receipt"]["liver"]["annotated"] == 1


def test_taking_back(desk: Server, ct: Truth) -> None:
    click = ct.click("liver")
    slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click])
    slicer(desk.url, "accept_slice", CT, label="liver", slice=click[2])
    said = slicer(desk.url, "empty_slice", CT, label="Liver", slice=0).params
    assert (said["label"], said["slice"]) == ("liver", 0) and said["detail"] == "slice 0 counts as one without liver"
    undone = slicer(desk.url, "undo", CT).params
    assert undone["slices"] == [{"label": "liver", "axis": 2, "slice": 0}]
    assert undone["detail"] == "taken back: slice 0 of liver" and "withdrawn: 0 (liver)" in undone["counted"]
    withdrawn = slicer(desk.url, "withdraw_slice", CT, label="liver", foreground=[click], slice=click[2]).params
    assert withdrawn["slice"] == click[2] and withdrawn["partial"]["slices"] == {}
    status, detail = refused(desk.url, "withdraw_slice", CT, label="liver", slice=click[2])
    assert status == 422 and "nothing to take back" in detail


def test_an_option_left_from_before_decides_nothing(desk: Server, ct: Truth) -> None:
    spleen = ct.click("spleen")
    slicer(desk.url, "sam_2d", CT, label="spleen", foreground=[spleen], slice=spleen[2])
    for model in ("accept_slice", "sam_2d"):
        status, detail = refused(
            desk.url, model, CT, label="spleen", for_label="liver", foreground=[spleen], client_id="user-xyz"
        )
        assert status == 422 and "'spleen' is selected" in detail and "'liver'" in detail
    assert not known(desk)["revisions"]


@pytest.mark.parametrize(
    ("model", "key", "near"),
    [("fewshot", "adept", "adapt"), ("sam_2d", "foregroud", "foreground"), ("sam_3d", "maxmm", "max_mm")],
)
def test_a_key_that_nobody_reads_is_refused(desk: Server, model: str, key: str, near: str) -> None:
    status, detail = refused(desk.url, model, CT, **{key: [[80, 80, 20]]})
    assert status == 422 and f"did you mean '{near}'?" in detail


def test_other_requests_with_unknown_keys_are_refused(desk: Server, ct: Truth, tmp_path: Path) -> None:
    web = MONAILabelClient(desk.url, tmpdir=str(tmp_path))
    volume = read_volume(Path(desk.studies) / f"{CT}.nii.gz")
    write_volume(volume.with_array(drawn(ct, 20)), tmp_path / "v.nrrd")
    with pytest.raises(MONAILabelClientException) as failed:
        web.save_label(CT, str(tmp_path / "v.nrrd"), params={"label_info": [{"name": "liver"}], "partal": {}})
    assert "did you mean 'partial'" in failed.value.msg and not known(desk)["revisions"]
    for route, body in (("activelearning/next_slices", {"label": "x"}), ("train/fewshot_decoder", {"step": 3})):
        answer = requests.post(f"{desk.url}/{route}", json=body, timeout=30)
        assert answer.status_code == 422 and "did you mean" in answer.json()["detail"]


def test_masks_travel_compressed(desk: Server, ct: Truth) -> None:
    click = ct.click("liver")
    settings = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    with requests.post(
        f"{desk.url}/infer/sam_2d",
        params={"image": CT, "output": "image"},
        files={"params": (None, json.dumps({**settings, "foreground": [click]}))},
        headers={"Accept-Encoding": "gzip"},
        stream=True,
        timeout=60,
    ) as answer:
        assert answer.headers["Content-Encoding"] == "gzip" and len(answer.raw.read()) < 50_000
    plain = slicer(desk.url, "sam_2d", CT, label="liver", foreground=[click], slice=click[2])
    assert len(plain.file) < 20_000 and nrrd_header(plain.file)["encoding"] == "gzip"


def test_every_model_has_a_request_in_the_rest_document(desk: Server) -> None:
    document = requests.get(f"{desk.url}/openapi.json", timeout=30).json()
    form = document["paths"]["/infer/{model}"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["examples"]) == set(desk.info()["models"])
    schema = document["components"]["schemas"][form["schema"]["$ref"].rpartition("/")[2]]
    keys = schema["properties"]["params"]["contentSchema"]["properties"]
    assert all(keys[name]["description"] for name in ("foreground", "background", "roi", "slice", "label"))
    options = {name for model in desk.info()["models"].values() for name in model["config"]}
    assert options <= keys.keys()


def test_an_answer_for_the_volume_holds_annotated_slices_as_they_are(desk: Server, ct: Truth, tmp_path: Path) -> None:
    """Slicer replaces the whole segment by the answer, and sends all points of the segment each time."""
    click = ct.click("liver")
    first = slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click], reset_state=True)
    corrected = first.mask.copy()
    for k in (click[2], click[2] + 1):
        corrected[k, :4, :4] = 1
    slicer_submit(desk.url, CT, corrected, ["liver"], tmp_path)
    empty = [3, 3, 0]
    slicer(desk.url, "empty_slice", CT, label="liver", foreground=[empty], slice=0)
    other = ct.click("liver", k=click[2] - 2)
    second = slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click, empty, other])
    for k in (click[2], click[2] + 1):
        np.testing.assert_array_equal(second.mask[k], corrected[k])
    assert not second.mask[0].any()  # the click that only said so is no prompt
    wrong = [1, 1, click[2]]
    third = slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click, empty, other], background=[wrong])
    assert third.mask[click[2], 1, 1] == 0  # a new prompt changes the slice that it is on
    np.testing.assert_array_equal(third.mask[click[2] + 1], corrected[click[2] + 1])
    fourth = slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click, empty], background=[wrong])
    assert fourth.mask[click[2], 1, 1] == 0


def test_messages_that_mean_nothing_are_refused(desk: Server, ct: Truth) -> None:
    for model, params, words in (
        ("accept_slice", {"foreground": [[3, 3, 2]], "label": "liver", "client_id": "new"}, "no mask of liver"),
        ("accept_slice", {"label": "liver"}, "place a point"),
        ("empty_slice", {"foreground": [[3, 3, 2]], "client_id": "new"}, "which label"),
        ("finish_volume", {"client_id": "new"}, "nothing of this image was shown"),
        ("sam_2d", {"foreground": [[80, 80, 20]], "save_label": True, "label_tag": "final"}, "person"),
    ):
        status, detail = refused(desk.url, model, MR, **params)
        assert status == 422 and words in detail, (model, detail)
    with (Path(desk.studies) / f"{MR}.nii.gz").open("rb") as file:
        sent = {"params": (None, json.dumps({"foreground": [[3, 3, 2]], "label": "liver"})), "file": ("x.nii.gz", file)}
        answer = requests.post(f"{desk.url}/infer/empty_slice", files=sent, timeout=60)
    assert answer.status_code == 422 and "upload the image" in answer.json()["detail"]


def test_a_submission_on_another_grid_is_refused(desk: Server, ct: Truth, tmp_path: Path) -> None:
    slicer_submit(desk.url, CT, drawn(ct, 20), ["liver"], tmp_path)
    before = known(desk)
    mr = read_volume(Path(desk.studies) / f"{MR}.nii.gz")
    write_volume(mr.with_array(np.ones(mr.shape, np.uint8)), tmp_path / "other.nii.gz")
    web = MONAILabelClient(desk.url, tmpdir=str(tmp_path))
    with pytest.raises(MONAILabelClientException) as failed:
        web.save_label(CT, str(tmp_path / "other.nii.gz"), params={"label_info": [{"name": "liver"}]})
    assert "grid" in failed.value.msg and str(desk.studies) not in failed.value.msg
    assert known(desk) == before


def test_another_tag_is_kept_as_it_is(desk: Server, ct: Truth, tmp_path: Path) -> None:
    web = MONAILabelClient(desk.url, tmpdir=str(tmp_path))
    volume = read_volume(Path(desk.studies) / f"{CT}.nii.gz")
    write_volume(volume.with_array(drawn(ct, 20, value=9)), tmp_path / "v.nrrd")
    assert web.save_label(CT, str(tmp_path / "v.nrrd"), tag="version_1", params={"by": "me"})["tag"] == "version_1"
    assert stored_tag(desk, "version_1")["info"]["by"] == "me"
    assert not known(desk)["revisions"]
    requests.delete(f"{desk.url}/datastore/label", params={"id": CT, "tag": "version_1"}, timeout=30)


def stored_tag(server: Server, tag: str) -> dict[str, Any]:
    everything = requests.get(f"{server.url}/datastore/", params={"output": "all"}, timeout=30).json()
    return everything["objects"][CT]["labels"][tag]


def test_everything_is_there_after_a_restart(start: Callable[..., Server], ct: Truth, tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    copy_of(CT, folder)
    k = ct.click("liver")[2]
    first = start(studies=folder, conf={"precompute": "false"}).wait_until_it_answers()
    served = slicer(first.url, "sam_3d", CT, label="liver", foreground=[ct.click("liver")])
    slicer_submit(first.url, CT, drawn(ct, k), ["liver"], tmp_path)
    said = known(first)
    first.stop()
    second = start(studies=folder, conf={"precompute": "false"}).wait_until_it_answers()
    assert known(second) == said and second.info()["datastore"]["completed"] == 1
    answer = slicer_submit(second.url, CT, served.mask, ["liver"], tmp_path)
    assert answer["revision"] >= 2 and k in slices(answer)["annotated"]


@pytest.mark.parametrize("label", ["a\ud800", " ", "\u200b", "Background", "not_liver", "x" * 200])
def test_a_name_that_cannot_be_one_harms_nobody(desk: Server, label: str) -> None:
    params = json.dumps({"label": label, "slice": 1, "client_id": "reader-a"})
    url = f"{desk.url}/infer/empty_slice"
    answer = requests.post(url, params={"image": CT}, files={"params": (None, params)}, timeout=60)
    assert answer.status_code == 422, answer.text
    assert not known(desk)["revisions"] and desk.info()["labels"]


def test_every_annotated_slice_stays_however_many_there_are(desk: Server, ct: Truth, tmp_path: Path) -> None:
    """The model is shown a part of them at most."""
    indices = [int(k) for k in np.flatnonzero(ct.mask("liver").any(axis=(1, 2)))]
    assert len(indices) > 24
    mask = drawn(ct, *indices)
    mask[indices, :3, :3] = 1  # nothing that a model would say
    partial = {"slices": {"liver": {"annotated": indices}}}
    slicer_submit(desk.url, CT, mask, ["liver"], tmp_path, partial=partial)
    answer = slicer(desk.url, "fewshot", CT, labels=["liver"], adapt=False, only_this_image=True)
    np.testing.assert_array_equal(answer.mask[indices] > 0, mask[indices] > 0)


def test_a_confirmation_is_about_what_was_asked(desk: Server, ct: Truth) -> None:
    click, reader = ct.click("liver"), {"client_id": "reader-a"}
    slicer(desk.url, "sam_3d", CT, label="liver", foreground=[click], **reader)
    slicer(desk.url, "accept_slice", CT, label="liver", slice=click[2], **reader)
    assert refused(desk.url, "finish_volume", CT, **reader)[0] == 409
    about = {"image": CT, "client_id": "reader-a"}
    requests.post(f"{desk.url}/datastore/annotations/opened", params=about, timeout=30).raise_for_status()
    requests.get(f"{desk.url}/datastore/annotations/masks", params=about, timeout=30).raise_for_status()
    assert refused(desk.url, "finish_volume", CT, **reader)[0] == 409, "the image was opened again since"
    slicer(desk.url, "finish_volume", CT, **reader)


def test_what_is_shown_again_and_sent_back_changes_nothing(desk: Server, ct: Truth, tmp_path: Path) -> None:
    k = ct.click("liver")[2]
    inner = np.zeros_like(drawn(ct, k))
    rows, columns = np.nonzero(ct.mask("liver")[k])
    inner[k, rows[40:60], columns[40:60]] = 1
    partial = {"slices": {"liver": {"annotated": [k]}}}
    slicer_submit(desk.url, CT, drawn(ct, k), ["liver"], tmp_path, partial=partial)
    partial = {"slices": {"aa lesion": {"annotated": [k]}}}
    slicer_submit(desk.url, CT, inner, ["aa lesion"], tmp_path, partial=partial)
    before = known(desk)["partial"]["slices"]
    about = {"image": CT, "client_id": "user-xyz"}
    again = requests.get(f"{desk.url}/datastore/annotations/masks", params=about, timeout=30)
    values = json.loads(unquote(again.headers["X-Ssmsam-Labels"]))
    sent = read_mask(again.content, "masks.nrrd")
    np.testing.assert_array_equal(sent == values["aa lesion"], inner > 0)
    order = sorted(values, key=values.get)
    compact = sum((sent == values[name]) * number for number, name in enumerate(order, 1))
    answer = slicer_submit(desk.url, CT, compact, order, tmp_path)
    assert "annotated already" in answer["counted"][0] and known(desk)["partial"]["slices"] == before
