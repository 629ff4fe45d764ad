"""The server's own page in a real Chromium, worked by mouse and keys, and looked at on the server."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from drawn_measurements import images, presentation_state, report
from PIL import Image
from sample_cases import CT, MR, SAMPLES, SLICE_DICE, Truth, copy_of, dice
from serving import Server
from stored_segs import stored
from viewers import TIMEOUT, ohif, read_mask, stored_label

from ssmsam.cli.pacs import Orthanc

pytest.importorskip("playwright", reason="playwright is not installed: pip install -r requirements-dev.txt")

from ohif_page import SCALE
from page_window import HAS_PAGE, Window, opened_browser, opened_window
from playwright.sync_api import Browser

pytestmark = HAS_PAGE

CONF = {"precompute": "false", "encoder": "small"}
LABEL_KEYS = {"liver": "1", "spleen": "2", "right kidney": "3", "left kidney": "4"}
MAGENTA = """name => { const label = ssmsam.study.label(name); label.colour = '#ff00ff'; ssmsam.study.keepLabels();
    ssmsam.stage.setOpacity(1); }"""
NAMELESS = """() => [...document.querySelectorAll('button, input, select, textarea, a[href]')].filter(one => {
    const name = one.getAttribute('aria-label') || one.textContent.trim() || one.closest('label')?.textContent.trim()
        || (one.id && document.querySelector(`label[for=${one.id}]`)?.textContent);
    return one.getClientRects().length && !name;
}).map(one => one.outerHTML)"""

NOT_REACHED = """() => [...document.querySelectorAll('button, input, select, textarea, a[href], summary')]
    .filter(one => one.getClientRects().length && !one.disabled && one.tabIndex >= 0 && !one.dataset.reached)
    .map(one => one.outerHTML)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    studies = tmp_path_factory.mktemp("page-studies")
    copy_of(CT, studies)
    copy_of(MR, studies)
    (studies / "broken.nii.gz").write_bytes(b"not an image")
    return studies


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page-home")


@pytest.fixture(scope="module")
def served(folder: Path, home: Path) -> Iterator[Server]:
    running = Server(studies=folder, home=home, conf=CONF)
    try:
        yield running.wait_until_it_answers().wait_until_warm()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    with opened_window(browser) as window:
        yield window


def known_slices(url: str, image: str, label: str, kind: str = "annotated") -> list[int]:
    known = requests.get(f"{url}/datastore/annotations", params={"image": image}, timeout=TIMEOUT).json()
    return known["partial"].get("slices", {}).get(label, {}).get(kind, [])


def row_of(url: str, image: str) -> dict[str, Any]:
    rows = requests.get(f"{url}/studies", timeout=TIMEOUT).json()["studies"]
    return next(row for row in rows if row["image"] == image)


def exported(window: Window, format: str) -> bytes:
    with window.page.expect_download() as download:
        window.page.click(f"[data-do={format}]")
    window.idle()
    return Path(download.value.path()).read_bytes()


def magenta_voxels(window: Window, k: int, truth: Truth) -> np.ndarray:
    """The voxels of a slice whose pixels on the screen are magenta, (rows, columns)."""
    columns, rows = truth.array.shape[2], truth.array.shape[1]
    places = [window.place([i, j, k]) for i, j in ((0, 0), (columns - 1, 0), (0, rows - 1))]
    picture = np.asarray(Image.open(io.BytesIO(window.page.screenshot())).convert("RGB")).astype(int)
    origin, right, down = (np.array(place) for place in places)
    steps_i, steps_j = (right - origin) / (columns - 1), (down - origin) / (rows - 1)
    x, y = (origin + np.arange(rows)[:, None, None] * steps_j + np.arange(columns)[None, :, None] * steps_i).T
    seen = picture[np.rint(SCALE * y).T.astype(int), np.rint(SCALE * x).T.astype(int)]
    return (seen[..., 0] > 150) & (seen[..., 2] > 150) & (seen[..., 1] < 120)


def test_the_list_says_what_cannot_be_read_and_finds_what_is_looked_for(served: Server, window: Window) -> None:
    page = window.page
    page.goto(served.url)
    row = page.locator("tr", has_text="broken")
    row.get_by_text("cannot be read").wait_for()
    assert "NIfTI" in row.inner_text()
    page.locator("tr", has_text=CT).get_by_text("CT", exact=True).wait_for()
    page.keyboard.press("/")
    page.keyboard.type("mr_")
    assert page.locator("#rows tr").count() == 1
    page.goto(f"{served.url}/annotate?image=broken")
    page.locator(".loading.error", has_text="not a readable NIfTI").wait_for()


@pytest.mark.parametrize(("image", "label"), [(CT, "right kidney"), (MR, "liver")])
def test_a_click_shows_the_mask_that_the_server_has(served: Server, window: Window, image: str, label: str) -> None:
    truth = Truth.of(image)
    click = truth.click(label)
    k = click[2]
    window.open(served.url, image)
    window.press(LABEL_KEYS[label])
    window.click(click)
    shown = window.mask(label, k, truth)
    sent = ohif(served.url, "sam_2d", image, label=label, foreground=[click], slice=k, client_id="other").mask[k] > 0
    assert dice(shown, sent) > 0.97, "a pixel of the screen beside at most"
    assert dice(shown, truth.mask(label)[k]) > 0.7, "how good one click is has tests of its own"
    assert window.page.locator("#overlay .unsure").count() == 1, "where it is uncertain"
    assert "Saved" in window.press("q", "a") and "annotated" in window.strip(k)
    stored, values = stored_label(served.url, image, "partial")
    assert np.array_equal(stored[k] == values[label], shown)
    window.page.evaluate(MAGENTA, label)
    window.page.mouse.move(5, 5)
    assert dice(magenta_voxels(window, k, truth), shown) > 0.98, "drawn over the voxels that it is about"


def test_strokes_are_saved_and_every_step_is_taken_back(served: Server, window: Window, ct: Truth) -> None:
    label, k = "spleen", 20
    window.open(served.url, CT)
    assert window.press("2", "d") == ""
    assert window.drag([80, 60, k], [90, 60, k]).startswith("Saved")
    drawn = window.mask(label, k, ct)
    stored, values = stored_label(served.url, CT, "partial")
    assert drawn[60, 80:91].all() and np.array_equal(stored[k] == values[label], drawn)
    window.press("r")
    window.drag([80, 60, k], [81, 60, k])
    erased = window.mask(label, k, ct)
    assert not erased[60, 80] and erased[60, 90]
    window.press("Delete")
    assert not window.mask(label, k, ct).any() and k not in known_slices(served.url, CT, label)
    window.press("e")
    assert known_slices(served.url, CT, label, "empty") == [k]
    window.press("z", "z")
    assert np.array_equal(window.mask(label, k, ct), erased) and k in known_slices(served.url, CT, label)
    window.press("z")
    assert np.array_equal(window.mask(label, k, ct), drawn)
    window.press("z")
    assert not window.mask(label, k, ct).any() and k not in known_slices(served.url, CT, label)
    window.press("y", "y", "y", "y")
    assert known_slices(served.url, CT, label, "empty") == [k]


def test_box_scribble_lasso_and_points_that_take_away(served: Server, window: Window, ct: Truth) -> None:
    label = "liver"
    click = ct.click(label)
    k, truth = click[2], ct.mask(label)[click[2]]
    j, i = np.nonzero(truth)
    window.open(served.url, CT)
    window.press("1", "b")
    window.drag([int(i.min()), int(j.min()), k], [int(i.max()), int(j.max()), k])
    assert dice(window.mask(label, k, ct), truth) > 0.75
    window.press("z", "s")
    rows = np.linspace(j.min() + 10, j.max() - 10, 4).astype(int)
    middle = [[int(np.median(i[j == row])), int(row), k] for row in rows]
    window.drag(*middle)
    scribbled = window.mask(label, k, ct)
    assert dice(scribbled, truth) > 0.6 and all(scribbled[row, column] for column, row, _ in middle)
    wrong = np.argwhere(scribbled & ~truth)
    if len(wrong):
        row, column = (int(one) for one in wrong[len(wrong) // 2])
        window.click([column, row, k], button="right")
        assert not window.mask(label, k, ct)[row, column]
    window.press("Delete", "l")
    middle_i, middle_j = int(i.mean()), int(j.mean())
    corners = [(i.min(), middle_j), (middle_i, j.min()), (i.max(), middle_j), (middle_i, j.max())]
    window.drag(*[[int(column), int(row), k] for column, row in corners])
    assert dice(window.mask(label, k, ct), truth) > 0.6


def test_by_keys_alone(served: Server, window: Window, ct: Truth) -> None:
    label = "cyst"
    window.open(served.url, MR)
    window.page.keyboard.press("Tab")
    window.page.locator("#add-label input").focus()
    window.page.keyboard.type(label)
    window.page.keyboard.press("Enter")
    before = window.slice
    for key in ("PageUp", "ArrowDown", "Shift+ArrowLeft", "Shift+ArrowLeft", "Enter"):
        window.press(key)
    k = window.slice
    assert k == before + 9 and window.press("a").startswith("Saved")
    assert known_slices(served.url, MR, label) == [k]
    window.press("z", "z")
    window.press("ArrowUp", "[")
    assert window.slice == k + 1, "nothing is annotated any more"
    assert window.page.evaluate(NAMELESS) == []
    for _ in range(75):
        window.page.keyboard.press("Tab")
        window.page.evaluate("() => { document.activeElement.dataset.reached = 'yes'; }")
    assert window.page.evaluate(NOT_REACHED) == []
    window.page.locator("#frame").focus()
    window.press("?")
    window.page.keyboard.press("Escape")
    for key in ("w", "v", "v", "v", "t", "t", "+", "-"):
        window.press(key)
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_two_people_at_once(served: Server, browser: Browser, window: Window) -> None:
    truth, label = Truth.of(MR), "right kidney"
    slices = np.flatnonzero(truth.mask(label).any(axis=(1, 2)))
    one, two = int(slices[len(slices) // 3]), int(slices[2 * len(slices) // 3])
    with opened_window(browser, "page-second") as other:
        for user in (window, other):
            user.open(served.url, MR)
            user.press("3")
        window.click(truth.click(label, k=one))
        other.click(truth.click(label, k=two))
        assert not other.mask(label, one, truth).any(), "what is not accepted is its reader's own"
        window.press("a")
        other.press("a")
        assert {one, two} <= set(known_slices(served.url, MR, label))
        other.open(served.url, MR)
        assert np.array_equal(other.mask(label, one, truth), window.mask(label, one, truth))
        other.press("3")
        other.click(truth.click(label, k=(one + two) // 2))
        other.press("a")
        _is_stopped(served, other, truth, one + 1)
    assert {"page-reader", "page-second"} <= {who["client"] for who in row_of(served.url, MR)["workers"]}


def _is_stopped(server: Server, window: Window, truth: Truth, between: int) -> None:
    """An adaptation is cancelled before it proposes anything, and once it has. On a slow machine a proposal may come
    before the click that stops it."""
    answers: list[str] = []
    window.page.on("response", lambda response: answers.append(response.url) if "/infer/" in response.url else None)

    def running() -> list[dict[str, Any]]:
        jobs = requests.get(f"{server.url}/jobs", timeout=TIMEOUT).json()["jobs"]
        return [one for one in jobs if one["image"] == MR and one["state"] not in ("done", "failed", "cancelled")]

    job, stop = window.page.locator("#job"), window.page.locator("#cancel")
    for proposed in (False, True):
        answers.clear()
        window.page.keyboard.press("f")
        if proposed:
            window.page.locator("#saved", has_text="goes on adapting").wait_for()
        else:
            job.filter(has_not_text="the server begins").wait_for()
        stop.click()
        job.wait_for(state="hidden")
        assert window.idle().startswith("Stopped")
        server.wait_for(lambda info: not running(), seconds=30)
        assert window.mask("right kidney", between, truth).any() == bool(answers), "what was proposed stays"
        assert answers or not proposed
        assert window.page.locator(".notice.error").count() == 0


def test_the_whole_way_of_a_study(
    folder: Path, home: Path, served: Server, browser: Browser, window: Window, ct: Truth
) -> None:
    """Two slices, a reload, a server that is killed, an adaptation, a correction, the end, and a review."""
    label = "left kidney"
    about = {"image": CT}  # what other walks annotated would have to be finished too
    requests.delete(f"{served.url}/datastore/annotations", params=about, timeout=TIMEOUT).raise_for_status()
    slices = np.flatnonzero(ct.mask(label).any(axis=(1, 2)))
    one, two, three = (int(slices[round(share * (len(slices) - 1))]) for share in (0.3, 0.7, 0.5))
    window.open(served.url, CT)
    with opened_window(browser, "page-chief") as chief:  # draws one of the slices too
        chief.open(served.url, CT)
        j, i = np.nonzero(ct.mask(label)[one])
        chief.press("4", "b")
        chief.drag([int(i.min()), int(j.min()), one], [int(i.max()), int(j.max()), one])
        chief.press("a")
    for k in (one, two):
        window.press("4")
        window.click(ct.click(label, k=k))
        window.press("a")
    window.page.reload()
    window.ready()
    window.press("4")
    before = window.mask(label, one, ct)
    assert dice(before, ct.mask(label)[one]) > SLICE_DICE and "annotated" in window.strip(two)

    window.click(ct.click(label, k=three))
    clicked = window.mask(label, three, ct)
    served.kill()
    window.press("a")
    window.page.locator(".notice.error", has_text="does not answer").wait_for()

    again = Server(studies=folder, home=home, conf=CONF)
    try:
        again.wait_until_it_answers().wait_until_warm()
        window.open(again.url, CT)
        window.press("4")
        assert np.array_equal(window.mask(label, one, ct), before)
        assert np.array_equal(window.mask(label, three, ct), clicked), "shown, though not accepted"
        window.adapt()
        assert window.page.locator("#estimate .found", has_text=label).count() == 1
        assert window.mask(label, three, ct).any() and "annotated" in window.strip(one)
        window.press("4", "u")
        k = window.slice
        assert k not in (one, two) and "uncertain" in window.strip(k)
        window.press("e")
        assert known_slices(again.url, CT, label, "empty") == [k]
        assert "uncertain" not in window.strip(k)

        window.page.click("[data-do=finish]")
        window.page.locator("#ask[open]").get_by_role("button", name="Yes, finish it").click()
        window.page.locator("#review", has_text="to review").wait_for()
        assert row_of(again.url, CT)["state"] == "to review"
        _is_reviewed(again, browser, window)
        mask = read_mask(exported(window, "nifti"), "mask.nii.gz")
        assert np.array_equal(read_mask(exported(window, "nrrd"), "mask.nrrd"), mask)
        assert window.page.locator("[data-do=dicom_seg]").is_disabled(), "it is no DICOM"
        assert mask.shape == ct.array.shape and not mask[k].any() and mask[one].any()
        assert mask[(one + two) // 2].any(), "what was proposed is finished too, though a slice was judged after it"
        window.page.goto(again.url)
        with window.page.expect_download() as download:
            window.page.click("#dataset")
        names = zipfile.ZipFile(download.value.path()).namelist()
        assert any(name.endswith("dataset.json") for name in names) and any("labelsTr/" in name for name in names)
        _is_asked(again, window)
        _dashboard(again, window)
    finally:
        again.kill()


def _is_reviewed(server: Server, browser: Browser, annotator: Window) -> None:
    with opened_window(browser, "page-chief") as chief:
        chief.open(server.url, CT)
        agree = re.compile(r"page-chief and page-reader agree by Dice [01].\d\d on 1 slice")
        chief.page.locator("#review", has_text=agree).wait_for()
        chief.page.locator("#review-back").click()
        chief.page.locator(".notice.error", has_text="what is to be mended").wait_for()
        chief.page.get_by_label("Note for who annotated it").fill("look at the lower pole")
        chief.page.locator("#review-back").click()
        chief.page.locator("#review", has_text="in work").wait_for()
    annotator.page.reload()
    annotator.ready()
    annotator.page.locator("#review", has_text="look at the lower pole").wait_for()
    annotator.page.click("[data-do=finish]")
    annotator.page.locator("#ask[open]").get_by_role("button", name="Yes, finish it").click()
    annotator.page.locator("#review", has_text="to review").wait_for()
    with opened_window(browser, "page-chief") as chief:
        chief.open(server.url, CT)
        chief.page.locator("#review-accept").click()
        chief.page.locator("#review", has_text="finished").wait_for()
    row = row_of(server.url, CT)
    assert row["state"] == "finished" and row["review"]["client"] == "page-chief"


def _is_asked(server: Server, window: Window) -> None:
    """The list names a study, slices and reasons; the study opens on the first of them, and says why."""
    window.page.goto(server.url)
    window.page.click("#next")
    window.page.locator("#suggestion a").wait_for()
    title, (first, *_) = window.page.locator("#suggestion h2").inner_text(), window.page.locator("#suggestion li").all()
    slice, label, why = re.fullmatch(r"slice (\d+), ([^:]+): (.+)", first.inner_text()).groups()  # type: ignore[union-attr]
    assert title.startswith("Next: ") and slice in title and why
    window.page.keyboard.press("Enter")  # the link has the focus
    window.ready()
    assert window.slice == int(slice) and "asked" in window.strip(int(slice))
    assert window.page.locator("#labels .current").inner_text().startswith(label)
    assert why.split(";")[0] in window.page.locator("#hint").inner_text()


def _dashboard(server: Server, window: Window) -> None:
    window.page.goto(f"{server.url}/dashboard")
    window.page.locator("#checkpoints .tag", has_text="in use").wait_for()
    assert window.page.locator("#plots svg").count() == 2
    assert window.page.locator("#slicer-address").inner_text() == server.url
    assert "broken" in window.page.locator("#aside").inner_text()
    assert window.page.evaluate(NAMELESS) == []
    use = window.page.get_by_role("button", name="Use checkpoint")
    assert use.count(), "others adapted before"
    name = (use.first.get_attribute("aria-label") or "").rpartition(" ")[2]
    use.first.click()
    window.page.locator(".notice", has_text="answers now").wait_for()
    assert requests.get(f"{server.url}/checkpoints", timeout=TIMEOUT).json()["active"] == name
    window.page.locator("tr", has_text=name).get_by_text("in use").wait_for()


def _measured() -> list[pydicom.Dataset]:
    """A line in a report and an arrow in a presentation state, on the CT."""
    drawn = images(SAMPLES / "abdomen_dicom" / CT)
    line, arrow = np.array([[40.0, 60.0], [70.0, 66.0]]), np.array([[20.0, 30.0], [45.0, 50.0]])
    return [report(drawn, [("POLYLINE", 20, line)]), presentation_state(drawn, [("ARROW", 12, arrow)])]


def test_a_study_of_an_archive(orthanc: Orthanc, tmp_path: Path, window: Window, ct: Truth) -> None:
    label = "right kidney"
    running = Server(studies=orthanc.url, home=tmp_path, conf=CONF)
    try:
        running.wait_until_it_answers().wait_until_warm()
        rows = requests.get(f"{running.url}/studies", timeout=TIMEOUT).json()["studies"]
        image = next(row["image"] for row in rows if row["info"].get("PatientID") == "SAMPLE-11")
        with stored(orthanc, _measured(), tmp_path):
            window.open(running.url, image)
            window.page.locator("#measurements summary", has_text="(2)").click()
        for place, kind in ((20, "scribbles"), (12, "positive")):
            row = window.page.locator("#measurements .line", has_text=f"{place}:")
            row.get_by_role("button", name="Use").click()
            window.idle()
            assert window.slice == place and window.mask("liver", place, ct).any()
            assert window.page.evaluate("k => ssmsam.study.promptsAt(ssmsam.study.current, k)", place)[kind]
            window.page.locator("#frame").focus()
        window.press("3")
        click = ct.click(label)
        window.click(click)
        window.press("a")
        kept, values = stored_label(running.url, image, "partial")
        shown = window.mask(label, click[2], ct)
        assert np.array_equal(kept[click[2]] == values[label], shown)
        assert dice(shown, ct.mask(label)[click[2]]) > SLICE_DICE
        kinds = {kind: pydicom.dcmread(io.BytesIO(exported(window, kind))) for kind in ("dicom_seg", "rtstruct")}
        assert [kinds[kind].Modality for kind in ("dicom_seg", "rtstruct")] == ["SEG", "RTSTRUCT"]
        assert label in str(kinds["rtstruct"].StructureSetROISequence[0].ROIName)
    finally:
        running.kill()


def test_a_login_comes_before_patients(folder: Path, tmp_path: Path, window: Window) -> None:
    pytest.importorskip("cryptography", reason="the realm signs its tokens with cryptography")
    from token_realm import TokenRealm

    realm = TokenRealm(password="sesame", roles=("monailabel-user", "monailabel-annotator"))
    environment = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm.url}
    running = Server(studies=folder, home=tmp_path, conf=CONF, environment=environment)
    try:
        running.wait_until_it_answers()
        page = window.page
        page.goto(running.url)
        page.get_by_label("User name").fill("reader-a")
        page.get_by_label("Password").fill("sesame")
        assert CT not in page.content()
        page.keyboard.press("Enter")
        page.locator("tr", has_text=CT).wait_for()
        window.open(running.url, CT)
    finally:
        running.kill()
        realm.close()
