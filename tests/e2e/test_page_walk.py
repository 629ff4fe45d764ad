"""The server's own page in a real Chromium, worked by mouse and keys, and looked at on the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sample_cases import CT, MR, SLICE_DICE, Truth, copy_of, dice
from serving import Server
from viewers import TIMEOUT, ohif, stored_label

from ssmsam.cli.pacs import Orthanc
from ssmsam.server.routes.page import NIIVUE

pytest.importorskip("playwright", reason="playwright is not installed: pip install -r requirements-dev.txt")

from ohif_page import ARGUMENTS, CHROMIUM
from playwright.sync_api import Page, sync_playwright

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not NIIVUE.is_file(), reason="NiiVue is not there: make setup"),
]

CONF = {"precompute": "false", "encoder": "small"}
READER = "page-reader"
SCREEN = """k => Array.from(ssmsam.stage.grid.read(ssmsam.stage.voxels, k))"""
VALUE = """name => ssmsam.labels().find(one => one.name === name).value"""


class Annotating:
    """A window with one study open. ``errors`` are those of its scripts and of its security policy."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: "Content Security" in said.text and self.errors.append(said.text))
        page.add_init_script(f"localStorage.setItem('ssmsam-client', '{READER}')")
        page.set_default_timeout(60_000)

    def open(self, url: str, image: str) -> None:
        self.page.goto(f"{url}/annotate?image={image}")
        self.ready()

    def ready(self) -> None:
        self.page.locator("body[data-ready]").wait_for()

    def idle(self) -> str:
        """Wait until everything is done; what it says of saving."""
        self.page.wait_for_timeout(150)
        self.page.locator("body:not([data-busy])").wait_for()
        return self.page.locator("#saved").inner_text()

    def press(self, *keys: str) -> str:
        for key in keys:
            self.page.keyboard.press(key)
        return self.idle()

    def place(self, ijk: list[int]) -> tuple[float, float]:
        """Go to a voxel's slice; where on the window the voxel is."""
        self.page.evaluate("k => ssmsam.stage.goTo(k)", ijk[2])
        x, y = self.page.evaluate("ijk => ssmsam.stage.at(ijk)", ijk)
        frame = self.page.locator("#gl").bounding_box()
        assert frame
        return frame["x"] + x, frame["y"] + y

    def click(self, ijk: list[int], **options: Any) -> str:
        self.page.mouse.click(*self.place(ijk), **options)
        return self.idle()

    def mask(self, label: str, k: int, truth: Truth) -> np.ndarray:
        """What is on the screen of a label on a stored slice, (rows, columns)."""
        voxels = np.array(self.page.evaluate(SCREEN, k)).reshape(truth.array.shape[1:])
        return voxels == self.page.evaluate(VALUE, label)

    def strip(self, k: int) -> str:
        return self.page.locator("#strip i").nth(k).get_attribute("class") or ""


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


@pytest.fixture
def window() -> Iterator[Annotating]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            shown = Annotating(browser.new_page(viewport={"width": 1280, "height": 720}))
            yield shown
            assert shown.errors == []
        finally:
            browser.close()


def test_the_list_says_what_cannot_be_read_and_finds_what_is_looked_for(served: Server, window: Annotating) -> None:
    page = window.page
    page.goto(served.url)
    row = page.locator("tr", has_text="broken")
    row.get_by_text("cannot be read").wait_for()
    assert "NIfTI" in row.inner_text()
    page.locator("tr", has_text=CT).get_by_text("CT", exact=True).wait_for()
    page.keyboard.press("/")
    page.keyboard.type("mr_")
    assert page.locator("#rows tr").count() == 1


@pytest.mark.parametrize(("image", "label"), [(CT, "right kidney"), (MR, "liver")])
def test_a_click_shows_the_mask_that_the_server_has(served: Server, window: Annotating, image: str, label: str) -> None:
    truth = Truth.of(image)
    click = truth.click(label)
    k = click[2]
    window.open(served.url, image)
    window.press({"liver": "1", "right kidney": "3"}[label])
    window.click(click)
    shown = window.mask(label, k, truth)
    sent = ohif(served.url, "sam_2d", image, label=label, foreground=[click], slice=k, client_id="other").mask[k] > 0
    assert dice(shown, sent) > 0.97, "a pixel of the screen beside at most"
    assert dice(shown, truth.mask(label)[k]) > 0.7, "how good one click is has tests of its own"
    assert "Saved" in window.press("a") and window.strip(k) == "annotated"
    stored, values = stored_label(served.url, image, "partial")
    assert np.array_equal(stored[k] == values[label], shown)


def test_strokes_are_saved_and_taken_back(served: Server, window: Annotating, ct: Truth) -> None:
    label, k = "spleen", 20
    window.open(served.url, CT)
    window.press("2", "d")
    window.click([80, 60, k])
    window.page.wait_for_timeout(600)
    assert window.idle().startswith("Saved")
    drawn = window.mask(label, k, ct)
    stored, values = stored_label(served.url, CT, "partial")
    assert drawn[60, 80] and np.array_equal(stored[k] == values[label], drawn)
    window.press("z")
    assert not window.mask(label, k, ct).any()
    window.press("y")
    assert np.array_equal(window.mask(label, k, ct), drawn)
    window.press("Delete")
    known = requests.get(f"{served.url}/datastore/annotations", params={"image": CT}, timeout=TIMEOUT).json()
    assert k not in known["partial"]["slices"].get(label, {}).get("annotated", [])


def test_nothing_is_lost_and_the_rest_is_proposed(
    folder: Path, home: Path, served: Server, window: Annotating, ct: Truth
) -> None:
    """Two slices, a reload, a server that is killed, then an adaptation."""
    label = "left kidney"
    slices = np.flatnonzero(ct.mask(label).any(axis=(1, 2)))
    one, two, three = (int(slices[round(share * (len(slices) - 1))]) for share in (0.3, 0.7, 0.5))
    window.open(served.url, CT)
    for k in (one, two):
        window.press("4")
        window.click(ct.click(label, k=k))
        window.press("a")
    window.page.reload()
    window.ready()
    window.press("4")
    before = window.mask(label, one, ct)
    assert dice(before, ct.mask(label)[one]) > SLICE_DICE and window.strip(two) == "annotated"

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
        window.press("f")
        window.page.locator("#estimate li", has_text=label).wait_for()
        window.press("4", "u")
        assert window.page.evaluate("ssmsam.stage.slice") not in (one, two)
        assert window.mask(label, three, ct).any() and window.strip(one) == "annotated"
    finally:
        again.kill()


def test_a_study_of_an_archive(orthanc: Orthanc, tmp_path: Path, window: Annotating, ct: Truth) -> None:
    label = "right kidney"
    running = Server(studies=orthanc.url, home=tmp_path, conf=CONF)
    try:
        running.wait_until_it_answers().wait_until_warm()
        rows = requests.get(f"{running.url}/studies", timeout=TIMEOUT).json()["studies"]
        image = next(row["image"] for row in rows if row["info"].get("PatientID") == "SAMPLE-11")
        window.open(running.url, image)
        window.press("3")
        click = ct.click(label)
        window.click(click)
        window.press("a")
        stored, values = stored_label(running.url, image, "partial")
        shown = window.mask(label, click[2], ct)
        assert np.array_equal(stored[click[2]] == values[label], shown)
        assert dice(shown, ct.mask(label)[click[2]]) > SLICE_DICE
    finally:
        running.kill()


def test_a_login_comes_before_patients(folder: Path, tmp_path: Path, window: Annotating) -> None:
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
