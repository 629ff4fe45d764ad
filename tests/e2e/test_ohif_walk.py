"""The loop of an OHIF user in a real browser, on a real archive: every step by hand, looked at in the viewer itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import SLICE_DICE, Truth, dice, resampled
from serving import Server
from stored_segs import read_by_dcmqi, stored_seg

from ssmsam.cli.pacs import Orthanc

pytest.importorskip("playwright", reason="playwright is not installed: pip install -r requirements-dev.txt")

from ohif_page import CHROMIUM, OhifPage, ohif

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

ORGAN, OTHER = "right kidney", "left kidney"
COMPLETED_DICE = 0.7
"""A kidney of which two slices were clicked and accepted, the rest proposed."""

OTHER_CT = "ct_02"
CORONAL = """(() => {
    const along = id => Math.abs(services.cornerstoneViewportService.getCornerstoneViewport(id)
        .getCamera().viewPlaneNormal[1]);
    return [...services.viewportGridService.getState().viewports.keys()].find(id => along(id) > 0.9);
})()"""


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


@dataclass(frozen=True)
class Study:
    """A study of the archive, and its one image."""

    study: str
    image: str
    patient: str

    @classmethod
    def of(cls, patient: str, orthanc: Orthanc) -> Study:
        found = requests.get(f"{orthanc.url}/series?PatientID={patient}&Modality=CT", timeout=60).json()[0]
        return cls(found["0020000D"]["Value"][0], found["0020000E"]["Value"][0], patient)


@pytest.fixture(scope="module")
def study(orthanc: Orthanc) -> Study:
    return Study.of("SAMPLE-11", orthanc)


@pytest.fixture(scope="module")
def other_study(orthanc: Orthanc) -> Study:
    return Study.of("SAMPLE-12", orthanc)


@pytest.fixture(autouse=True)
def forget(archive: Server, study: Study, other_study: Study) -> Iterator[None]:
    """Nothing is annotated when a test begins."""
    yield
    for one in (study, other_study):
        about = {"image": one.image}
        requests.delete(f"{archive.url}/datastore/annotations", params=about, timeout=60).raise_for_status()


def test_the_loop(viewer: OhifPage, archive: Server, orthanc: Orthanc, study: Study, ct: Truth, tmp_path: Path) -> None:
    """Two organs, from the list of studies to the archive. Every click and key of the user is counted."""
    actions = 0

    with viewer.step("a filter finds its patient and nobody else"):
        viewer.list_studies(mrn=study.patient)
        viewer.shows(study.patient)
        assert not viewer.page.get_by_text("SAMPLE-12").count()

    with viewer.step("the study opens"):
        viewer.open_study(study.study)

    with viewer.step("the panel connects to the server that the page came from"):
        assert viewer.connect() == archive.url
        viewer.prompt_with("sam_2d")

    clicks = {organ: [ct.click(organ, k=k) for k in inner_slices(ct.mask(organ))] for organ in (ORGAN, OTHER)}
    for organ, places in clicks.items():
        viewer.choose_label(organ)
        actions += 1
        for click in places:
            k, before = click[2], viewer.segmentation()[0]
            with viewer.step(f"{organ}, one click on slice {k}"):
                viewer.click_voxel(click)
                viewer.idle()
                mask = viewer.mask(organ)
                assert dice(mask[k], ct.mask(organ)[k]) > SLICE_DICE
                now = viewer.segmentation()[0]
                assert (np.delete(now, k, axis=0) == np.delete(before, k, axis=0)).all(), "its slice only"
            with viewer.step(f"{organ}, slice {k} is accepted"):
                assert viewer.press("a") == f"the mask of {organ} on slice {k} counts as right"
                assert (viewer.segmentation()[0] == now).all() and viewer.slice_states()[k] == "annotated"
            actions += 2
    accepted = {organ: viewer.mask(organ) for organ in clicks}
    drawn = {organ: sorted(k for _, _, k in places) for organ, places in clicks.items()}
    expected = {organ: {"annotated": drawn[organ], "empty": []} for organ in clicks}
    assert annotated(archive, study.image)["slices"] == expected
    print(f"{actions} actions for {sum(map(len, drawn.values()))} accepted slices of two organs")
    assert actions <= 2.5 * sum(map(len, drawn.values()))

    with viewer.step("the rest of the organs follows from two slices each"):
        assert viewer.press("f").startswith("Proposed ")
        for organ in clicks:
            proposed = viewer.mask(organ)
            assert np.setdiff1d(np.flatnonzero(proposed.any(axis=(1, 2))), drawn[organ]).size
            assert (proposed[drawn[organ]] == accepted[organ][drawn[organ]]).all(), "what was accepted stays as it is"
            assert dice(proposed, ct.mask(organ)) > max(COMPLETED_DICE, dice(accepted[organ], ct.mask(organ)))

    with viewer.step("the next slice is asked for and shown"):
        assert viewer.press("n").startswith(f"{OTHER}: ")
        assert viewer.slice_states()[viewer.slice_on_screen()].endswith("+asked")

    with viewer.step("the volume is finished, after a question"):
        shown, segments = viewer.segmentation()
        finished = archive.info()["datastore"]["finished"]  # other tests share the archive
        viewer.page.locator("[data-action=finish]").click()
        viewer.page.locator("dialog button", has_text="Finish").wait_for()
        question = viewer.page.locator("dialog p").inner_text()
        assert f"{ORGAN} on" in question and "ml; 2 checked" in question
        viewer.page.locator("dialog button", has_text="Finish").click()
        assert "kept in the archive, as DICOM SEG" in viewer.idle()
        assert (viewer.segmentation()[0] == shown).all()
        assert archive.info()["datastore"]["finished"] == finished + 1

    seg = stored_seg(orthanc, study.image, tmp_path / "seg.dcm")
    names = [str(item.SegmentLabel) for item in seg.SegmentSequence]
    assert set(names) == {ORGAN, OTHER}
    for name, stored in zip(names, read_by_dcmqi(tmp_path / "seg.dcm", tmp_path / "dcmqi"), strict=True):
        mask = resampled(stored.array > 0, stored.grid, ct.grid)
        assert (mask == (shown == segments[name])).all(), "the archive holds what was on screen"

    with viewer.step("finishing is taken back"):
        assert f"{ORGAN} is not finished any longer" in viewer.press("z")
        assert annotated(archive, study.image)["slices"] == expected
    assert {failure.partition("?")[0] for failure in viewer.failed} <= {"404 /train/", "409 /infer/finish_volume"}
    assert not viewer.errors


@pytest.mark.slow
def test_slips_are_said_and_nothing_dies(viewer: OhifPage, archive: Server, study: Study, ct: Truth) -> None:
    click = ct.click(ORGAN)
    viewer.open_study(study.study)
    viewer.connect()
    viewer.prompt_with("sam_2d")

    with viewer.step("run without a label, then without a point"):
        viewer.press_run()
        assert viewer.idle().startswith("choose a label first")
        viewer.choose_label(ORGAN)
        viewer.press_run()
        assert viewer.idle().startswith(f"place a point on the {ORGAN} first")

    with viewer.step("finishing an empty screen is refused"):
        viewer.page.locator("[data-action=finish]").click()
        assert viewer.idle().startswith("nothing of this image was shown on your screen")
        assert viewer.press("z").startswith("there is nothing of yours to take back")

    with viewer.step("an option is left from another organ: the highlighted label decides"):
        for model in ("sam_2d", "accept_slice"):
            viewer.choose_option(model, "for_label", "liver")
        viewer.click_voxel(click)
        viewer.idle()
        mask = viewer.mask(ORGAN)
        assert dice(mask[click[2]], ct.mask(ORGAN)[click[2]]) > SLICE_DICE
        viewer.prompt_with("accept_slice")  # as before there was a key: by the message model
        viewer.choose_label(ORGAN)
        viewer.press_run()
        slices = annotated(archive, study.image)["slices"]
        assert slices == {ORGAN: {"annotated": [click[2]], "empty": []}}

    with viewer.step("a negative point alone takes away where it is"):
        viewer.prompt_with("sam_2d")
        viewer.choose_label("background")
        viewer.click_voxel(click)
        viewer.idle()
        assert not viewer.mask(ORGAN)[click[2], click[1], click[0]] and viewer.mask("liver").sum() == 0
        viewer.choose_label(ORGAN)

    with viewer.step("a click in the coronal view is a click on that stored slice"):
        viewer.page.evaluate(f"() => services.viewportGridService.setActiveViewportId({CORONAL})")
        viewer.page.wait_for_function(f"() => services.viewportGridService.getActiveViewportId() === {CORONAL}")
        viewer.page.wait_for_timeout(1000)  # a click before it is drawn as active only activates it
        other = ct.click(ORGAN, k=click[2] + 2)
        viewer.click_voxel(other)
        viewer.page.wait_for_timeout(300)
        viewer.press_run()
        assert dice(viewer.mask(ORGAN)[other[2]], ct.mask(ORGAN)[other[2]]) > 0.7

    with viewer.step("not here, and a label of one's own"):
        viewer.page.locator(f".ssmsam-strip button[data-slice='{click[2]}']").click()
        assert viewer.press("e") == f"slice {click[2]} counts as one without {ORGAN}"
        assert not viewer.mask(ORGAN)[click[2]].any() and viewer.slice_states()[click[2]] == "empty"
        viewer.page.get_by_role("button", name="New label").click()
        viewer.page.locator("dialog input").fill("cyst")
        viewer.page.keyboard.press("Enter")
        assert viewer.idle() == "new label: cyst"
        viewer.click_voxel(click)
        viewer.idle()
        assert viewer.mask("cyst")[click[2]].any()
        assert viewer.press("a").endswith("counts as right; new label: cyst")

    with viewer.step("a reload in the middle brings the masks back"):
        before, segments = viewer.segmentation()
        viewer.open_study(study.study)
        viewer.wait_until_connected()
        for _ in ("by itself", "when the button is pressed, too"):
            after, again = viewer.segmentation()
            for label in (ORGAN, "cyst"):
                assert ((after == again[label]) == (before == segments[label])).all()
            viewer.connect()

    with viewer.step("left and right organs differ in colour"):
        viewer.page.wait_for_timeout(1500)  # after the panel has set its own
        for side in ("kidney", "lung"):
            left, right = (np.array(viewer.colour(f"{which} {side}")) for which in ("left", "right"))
            assert np.linalg.norm(left - right) > 50

    with viewer.step("the bar hides nothing of the images"):
        images = viewer.page.locator(".cornerstone-canvas").first.bounding_box()
        bar = viewer.page.locator("#ssmsam-bar").bounding_box()
        assert images and bar and images["y"] + images["height"] <= bar["y"]
    assert not viewer.errors


def test_a_page_that_is_not_known_is_left_alone(viewer: OhifPage, archive: Server) -> None:
    page = '<head></head><body><div class="monaiLabelPanel">another panel</div></body>'
    scripted = page.replace("</head>", '<script type="module" src="/ohif/ssmsam/main.js"></script></head>')
    viewer.page.route(f"{archive.url}/ohif/", lambda route: route.fulfill(body=scripted, content_type="text/html"))
    viewer.page.clock.install()
    viewer.page.goto(f"{archive.url}/ohif/")
    viewer.page.wait_for_load_state("load")
    viewer.page.clock.run_for(40_000)
    assert viewer.page.locator(".ssmsam-notice").count() == 1
    assert viewer.page.locator(".monaiLabelPanel").inner_text() == "another panel"
    assert not viewer.errors


@pytest.mark.slow
def test_two_studies_are_kept_apart(
    viewer: OhifPage, archive: Server, study: Study, other_study: Study, ct: Truth
) -> None:
    clicks = {study: ct.click(ORGAN), other_study: Truth.of(OTHER_CT).click(ORGAN)}
    for one, click in clicks.items():
        viewer.open_study(one.study)
        viewer.connect()
        assert not viewer.segmentation()[0].any(), "nothing of the study before"
        viewer.prompt_with("sam_2d")
        viewer.choose_label(ORGAN)
        viewer.click_voxel(click)
        viewer.idle()
        viewer.press("a")
    for one, click in clicks.items():
        assert annotated(archive, one.image)["slices"] == {ORGAN: {"annotated": [click[2]], "empty": []}}


def test_the_other_patient_is_never_listed(viewer: OhifPage) -> None:
    with viewer.step("by name"):
        viewer.list_studies(patientName="CT_02")
        viewer.shows("SAMPLE-12")
        assert not viewer.page.get_by_text("SAMPLE-11").count()
