"""The server on LiteMedSAM's encoder: boxes, clicks, few-shot and SSM-SAM work as on any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sample_cases import CT, LABELS, SAMPLES, dice
from serving import Server
from viewers import slicer, submit_slices

from ssmsam.models.weights import MissingWeights, find_weights
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

PART = slice(14, 23)
"""The slices of the sample CT that are used: a second each to embed."""
KNOWN = (1, 4, 7)
BOX_DICE = 0.8
"""A tight box against the truth of its slice. The sample is drawn, not a patient."""
PROPOSAL_DICE = 0.85
"""Of the first proposal, on the slices between the annotated ones."""
SHORT = {"budget_s": 4}


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return read_volume(SAMPLES / "abdomen_labels" / f"{CT}.nii.gz").array[PART] == LABELS["liver"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        find_weights("medsam_lite")
    except MissingWeights as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("medsam-lite")
    image = read_volume(SAMPLES / "abdomen" / f"{CT}.nii.gz")
    write_volume(Volume(image.array[PART], image.affine), folder / "studies" / "part.nii.gz")
    conf = {"encoder": "auto", "precompute": "false", "threads": "1"}
    running = Server(studies=folder / "studies", home=folder / "home", conf=conf)
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def test_auto_is_the_pretrained_encoder_where_it_is_installed(server: Server) -> None:
    assert server.info()["ssmsam"]["encoder"] == "medsam_lite"


def test_a_box_and_a_propagated_one(server: Server, truth: np.ndarray) -> None:
    k = len(truth) // 2
    j, i = np.nonzero(truth[k])
    sides = [int(i.min()), int(i.max()), int(j.min()), int(j.max())]
    box = {"roi": [*sides, 0, len(truth) - 1], "slice": k, "foreground": []}
    flat = slicer(server.url, "sam_2d", "part", label="liver", client_id="flat", **box)
    assert dice(flat.mask[k] != 0, truth[k]) > BOX_DICE
    assert np.flatnonzero(flat.mask.any(axis=(1, 2))).tolist() == [k]
    whole = slicer(server.url, "sam_3d", "part", label="liver", client_id="whole", **box)
    assert whole.mask[k].any() and len(np.flatnonzero(whole.mask.any(axis=(1, 2)))) > 1


def test_a_click_is_kept_to(server: Server, truth: np.ndarray) -> None:
    k = len(truth) // 2
    j, i = (int(np.median(places)) for places in np.nonzero(truth[k]))
    answer = slicer(server.url, "sam_2d", "part", label="liver", foreground=[[i, j, k]], slice=k, client_id="click")
    assert answer.mask[k, j, i] == 1


@pytest.mark.parametrize("model", ["fewshot", pytest.param("ssm_sam", marks=pytest.mark.slow)])
def test_annotated_slices_lead_to_a_proposal(server: Server, truth: np.ndarray, model: str, tmp_path: Path) -> None:
    file = tmp_path / "part.nii.gz"
    write_volume(Volume(truth.astype(np.uint8), read_volume(Path(server.studies) / "part.nii.gz").affine), file)
    submit_slices(server.url, "part", file, {"liver": 1}, KNOWN)
    answer = slicer(server.url, model, "part", **SHORT)
    assert answer.params["label_names"] == {"liver": 1}
    for index in KNOWN:
        np.testing.assert_array_equal(answer.mask[index] == 1, truth[index])
    others = [index for index in range(KNOWN[0], KNOWN[-1]) if index not in KNOWN]
    assert dice(answer.mask[others] == 1, truth[others]) > PROPOSAL_DICE
