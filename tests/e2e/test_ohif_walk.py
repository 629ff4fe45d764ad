"""The loop of an OHIF user in a real browser, on a real archive: every step by hand, looked at in the viewer itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from sample_cases import CT, SAMPLES, SLICE_DICE, VOLUME_DICE, Truth, dice, resampled
from serving import Server
from stored_segs import read_by_dcmqi, stored_seg

from ssmsam.server.orthanc import Orthanc

pytest.importorskip("playwright", reason="playwright is not installed: pip install -r requirements-dev.txt")

from ohif_page import CHROMIUM, OhifPage, ohif

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

ORGAN, OTHER = "right kidney", "left kidney"
COMPLETED_DICE = 0.7
"""A kidney of which two slices were clicked and accepted, the rest proposed."""

TRAINING_IDLE = "404 /train/?check_if_running=true"
"""How MONAI Label says that nothing is being trained."""


@pytest.fixture(scope="module")
def archive(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(studies=orthanc.url, home=tmp_path_factory.mktemp("home"), conf={"precompute": "false"})
    try:
        yield running.wait_until_it_answers().wait_until_warm()
    finally:
        running.kill()


@pytest.fixture
def viewer(archive: Server, tmp_path: Path) -> Iterator[OhifPage]:
    """A browser window. Its pictures are kept in SSMSAM_TEST_PICTURES, else beside pytest's other files."""
    with ohif(archive.url, Path(os.environ.get("SSMSAM_TEST_PICTURES", tmp_path / "pictures"))) as page:
        yield page


def is_near(points: list[list[int]], click: list[int]) -> bool:
    """Whether the viewer sent one point, on the right slice, off by a pixel of the screen at most."""
    return len(points) == 1 and points[0][2] == click[2] and max(abs(np.subtract(points[0], click))) <= 1


def inner_slices(mask: np.ndarray) -> list[int]:
    """A quarter and three quarters up through an organ (slices, rows, columns)."""
    found = np.flatnonzero(mask.any(axis=(1, 2)))
    return [int(found[round(share * (len(found) - 1))]) for share in (0.25, 0.75)]


def annotated(server: Server, image: str) -> dict[str, Any]:
    """What counts as annotated on an image."""
    answer = requests.get(f"{server.url}/datastore/annotations", params={"image": image}, timeout=60)
    answer.raise_for_status()
    return answer.json()["partial"]


def test_the_loop(viewer: OhifPage, archive: Server, orthanc: Orthanc, ct: Truth, tmp_path: Path) -> None:
    first = pydicom.dcmread(SAMPLES / "abdomen_dicom" / CT / "0001.dcm", stop_before_pixels=True)
    image = str(first.SeriesInstanceUID)

    with viewer.step("a filter finds its patient and nobody else"):
        viewer.list_studies(mrn=first.PatientID)
        viewer.shows(first.PatientID)
        assert not viewer.page.get_by_text("SAMPLE-12").count()

    with viewer.step("the study opens"):
        viewer.open_study(first.StudyInstanceUID)

    with viewer.step("the panel connects to the server that the page came from"):
        assert viewer.connect() == archive.url

    with viewer.step("the click models are told which organ it is about"):
        for model in ("sam_2d", "accept_slice"):
            viewer.choose_option(model, "for_label", ORGAN)

    clicks = [ct.click(ORGAN, k=k) for k in inner_slices(ct.mask(ORGAN))]
    for click in clicks:
        with viewer.step(f"one click on slice {click[2]}"):
            before, k = viewer.mask(ORGAN), click[2]
            viewer.prompt_with("sam_2d")
            viewer.choose_label(ORGAN)
            viewer.click_voxel(click)
            assert is_near(viewer.run()["foreground"], click)
            mask = viewer.mask(ORGAN)
            assert dice(mask[k], ct.mask(ORGAN)[k]) > SLICE_DICE
            assert mask.sum() == before.sum() + mask[k].sum(), "a 2-D answer changes its slice only"

        with viewer.step(f"slice {click[2]} is accepted"):
            viewer.prompt_with("accept_slice")
            viewer.choose_label(ORGAN)
            viewer.click_voxel(click)
            viewer.run()
            assert (viewer.mask(ORGAN) == mask).all(), "the answer to a message changes nothing on screen"
    accepted = viewer.mask(ORGAN)
    assert annotated(archive, image)["slices"] == {ORGAN: {"annotated": sorted(k for _, _, k in clicks), "empty": []}}

    with viewer.step("one click for the volume, of another organ"):
        click = ct.click(OTHER)
        viewer.choose_option("sam_3d", "for_label", OTHER)
        viewer.prompt_with("sam_3d")
        viewer.choose_label(OTHER)
        viewer.click_voxel(click)
        assert is_near(viewer.run()["foreground"], click)
        other = viewer.mask(OTHER)
        assert dice(other, ct.mask(OTHER)) > VOLUME_DICE
        assert (viewer.mask(ORGAN) == accepted).all(), "the first organ is untouched"

    with viewer.step("the rest of the organ follows from two slices"):
        viewer.propose_with("fewshot")
        viewer.run("Auto-Segmentation")
        proposed, drawn = viewer.mask(ORGAN), [k for _, _, k in clicks]
        assert np.setdiff1d(np.flatnonzero(proposed.any(axis=(1, 2))), drawn).size
        assert (proposed[drawn] == accepted[drawn]).all(), "what was accepted stays as it is"
        assert dice(proposed, ct.mask(ORGAN)) > max(COMPLETED_DICE, dice(accepted, ct.mask(ORGAN)))
        assert (viewer.mask(OTHER) == other & ~proposed).all(), "an organ that was not learned stays on screen"

    with viewer.step("the volume is finished"):
        shown, segments = viewer.segmentation()
        finished = archive.info()["datastore"]["finished"]  # other tests share the archive
        viewer.prompt_with("finish_volume")
        viewer.choose_label(ORGAN)
        viewer.click_voxel(clicks[0])
        viewer.run()
        assert (viewer.segmentation()[0] == shown).all(), "the answer to a message changes nothing on screen"
        assert archive.info()["datastore"]["finished"] == finished + 1

    seg = stored_seg(orthanc, image, tmp_path / "seg.dcm")
    names = [str(item.SegmentLabel) for item in seg.SegmentSequence]
    assert set(names) == {ORGAN, OTHER}
    for name, stored in zip(names, read_by_dcmqi(tmp_path / "seg.dcm", tmp_path / "dcmqi"), strict=True):
        mask = resampled(stored.array > 0, stored.grid, ct.grid)
        assert (mask == (shown == segments[name])).all(), "the archive holds what was on screen"

    assert set(viewer.failed) <= {TRAINING_IDLE}
    assert not viewer.errors


def test_the_other_patient_is_never_listed(viewer: OhifPage) -> None:
    with viewer.step("by name"):
        viewer.list_studies(patientName="CT_02")
        viewer.shows("SAMPLE-12")
        assert not viewer.page.get_by_text("SAMPLE-11").count()
