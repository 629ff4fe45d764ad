"""What to annotate next, through the real server: from nothing, then by what a few slices left open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, LABELS, SAMPLES
from serving import Server
from viewers import TIMEOUT, refused, slicer, slicer_submit

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

IMAGE, CLIENT = "short", "reader"
KEPT = slice(8, 44, 3)
"""Every third slice of the sample: enough to choose from, and quick."""


@dataclass(frozen=True, eq=False)
class Desk:
    """A server with one short volume, and the truth of its liver (slices, rows, columns)."""

    server: Server
    liver: np.ndarray

    def next(self, strategy: str = "next_slices", **options: Any) -> dict[str, Any]:
        answer = requests.post(
            f"{self.server.url}/activelearning/{strategy}",
            json={"client_id": CLIENT, "budget_s": 60, **options},
            timeout=TIMEOUT,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def drawn(self, slices: list[int]) -> np.ndarray:
        """The liver as it is on these slices, and nothing on the others."""
        mask = np.zeros(self.liver.shape, np.uint8)
        mask[slices] = self.liver[slices]
        return mask

    def submit(self, mask: np.ndarray, folder: Path) -> dict[str, list[int]]:
        """The way 3D Slicer sends it; what is known of the liver then."""
        said = slicer_submit(self.server.url, IMAGE, mask, ["liver"], folder, client_id=CLIENT)
        return said["partial"]["slices"]["liver"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("next-studies")
    for kind, place in (("abdomen", folder), ("abdomen_labels", tmp_path_factory.mktemp("next-truth"))):
        whole = read_volume(SAMPLES / kind / f"{CT}.nii.gz")
        affine = whole.affine.copy()
        affine[:3, 2] *= KEPT.step
        write_volume(Volume(whole.array[KEPT].copy(), affine, whole.modality), place / f"{IMAGE}.nii.gz")
        liver = whole.array[KEPT] == LABELS["liver"]
    running = Server(studies=folder, home=tmp_path_factory.mktemp("next-home"), conf={"precompute": "false"})
    try:
        yield Desk(running.wait_until_it_answers(), liver)
    finally:
        running.kill()


def test_from_the_first_sample_to_a_slice_that_is_truly_empty(desk: Desk, tmp_path: Path) -> None:
    first = desk.next(k=4)
    asked = first["slices"]
    assert first["id"] == IMAGE and len(asked) == 4 and first["labels"] == []
    assert first["PatientID"].endswith(f"slices {','.join(map(str, asked))}")
    assert len(first["why"]) == 4

    said = desk.submit(desk.drawn(asked), tmp_path)
    shows = [index for index in asked if desk.liver[index].any()]
    assert shows, "no representative slice shows the liver"
    assert said == {"annotated": shows, "empty": [index for index in asked if index not in shows]}

    answer = slicer(desk.server.url, "fewshot", IMAGE, client_id=CLIENT, adapt=False)
    assert answer.params["learned_from"] == {"liver": 4}

    encoded = desk.server.info()["ssmsam"]["encoded_slices"]
    second = desk.next(k=3)
    assert desk.server.info()["ssmsam"]["encoded_slices"] == encoded, "a choice sent slices through the encoder"
    assert second["id"] == IMAGE and second["labels"] == ["liver"] and len(second["slices"]) == 3
    assert not set(second["slices"]) & set(asked)
    for reason in second["reasons"]:
        assert reason["label"] == "liver" and f"slice {reason['slice']}" in reason["why"]
        assert 0 <= reason["presence"] <= 1 and reason["expected_error_mm2"] >= 0 and reason["distance_mm"] >= 15
    assert desk.next(k=3)["slices"] == second["slices"], "another choice although nothing has changed"

    # where an end is looked for the viewer's hint says so
    assert all(one["why"] in second["hint"] for one in second["reasons"] if one.get("find_end"))
    # where a mask was cut off at an annotated end it is asked whether the liver goes on, and the answer is no
    ends = answer.params["asked_slices"].get("liver", [])
    for index in ends:
        said_no = {"label": "liver", "slice": index}
        assert slicer(desk.server.url, "empty_slice", IMAGE, client_id=CLIENT, **said_no).params["slice"] == index

    # the served masks stay on screen but for the slices that were asked for: submitted empty, these are truly empty
    screen = answer.mask.copy()
    screen[second["slices"]] = 0
    said = desk.submit(screen, tmp_path)
    assert set(second["slices"]) <= set(said["empty"])
    assert set(said["annotated"]) | set(said["empty"]) == {*asked, *second["slices"], *ends}
    assert not set(desk.next(k=3)["slices"]) & {*asked, *second["slices"], *ends}


def test_a_map_says_how_unsure_the_model_is_and_views_change_it(desk: Desk) -> None:
    """After the test above: some slices of the liver are annotated."""
    once, often = (slicer(desk.server.url, "uncertainty_map", IMAGE, views=views) for views in (0, 2))
    assert (once.params["views"], often.params["views"]) == (0, 2) and once.params["labels"] == ["liver"]
    assert once.mask.shape == desk.liver.shape and 0 < once.mask.max() <= 100
    assert not np.array_equal(once.mask, often.mask)
    for answer in (once, often):
        assert (~answer.mask.any(axis=(1, 2))).sum() >= 4, "what is annotated is sure"


@pytest.mark.parametrize("strategy", ["uncertainty", "representative", "foreground_random", "random", "first"])
def test_every_strategy_answers(desk: Desk, strategy: str) -> None:
    found = desk.next(strategy, k=1)
    assert found["id"] == IMAGE
    if strategy != "first":
        assert len(found["slices"]) == 1 and found["axis"] == 2


def test_info_offers_next_slices_first(desk: Desk) -> None:
    info = desk.server.info()
    assert next(iter(info["strategies"])) == "next_slices"
    assert set(info["scoring"]) == {"dice", "uncertainty"}
    assert info["models"]["uncertainty_map"]["type"] == "others"  # viewers would draw its values as segments


def test_wishes_that_cannot_be_met_are_refused(desk: Desk) -> None:
    url = f"{desk.server.url}/activelearning/next_slices"
    for wish, status in (({"k": "many"}, 422), ({"image": "nowhere"}, 404)):
        answer = requests.post(url, json=wish, timeout=TIMEOUT)
        assert answer.status_code == status and answer.json()["detail"]
    assert refused(desk.server.url, "uncertainty_map", "nowhere")[0] == 404
    status, detail = refused(desk.server.url, "uncertainty_map", IMAGE, views="several")
    assert status == 422 and "views" in str(detail)


def test_scores_are_made_in_a_process_of_their_own(desk: Desk) -> None:
    url = f"{desk.server.url}/scoring/uncertainty"
    assert requests.post(url, json={}, timeout=TIMEOUT).status_code == 200
    desk.server.wait_for(lambda info: requests.get(f"{desk.server.url}/scoring/", timeout=TIMEOUT).json()["status"]
                         in ("DONE", "ERROR"), seconds=400)  # fmt: skip
    task = requests.get(f"{desk.server.url}/scoring/", timeout=TIMEOUT).json()
    assert task["status"] == "DONE", task
    info = requests.get(f"{desk.server.url}/datastore/image/info", params={"image": IMAGE}, timeout=TIMEOUT).json()
    assert 0 < info["uncertainty"] <= 1
