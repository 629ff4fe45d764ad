"""OHIF in a headless Chromium, worked as a user works it: real clicks on what is on the screen."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, Request, Response, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
]  # fmt: skip
"""WebGL without a graphics card."""
SCALE = 0.5
"""Pixels of the screen to one of the page: a quarter of what would be drawn takes a quarter of the processor."""

SECONDS = 120.0

# Both ask OHIF's own services, which it leaves on the window for such purposes.
PLACE_OF_VOXEL = """([i, j, k]) => {
    const grid = services.viewportGridService.getState();
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(grid.activeViewportId);
    const world = viewport.getImageData().imageData.indexToWorld([i, j, k]);
    const camera = viewport.getCamera(), normal = camera.viewPlaneNormal;
    const ahead = normal.reduce((sum, n, axis) => sum + n * (world[axis] - camera.focalPoint[axis]), 0);
    const moved = place => place.map((value, axis) => value + normal[axis] * ahead);
    viewport.setCamera({focalPoint: moved(camera.focalPoint), position: moved(camera.position)});
    viewport.render();
    const [x, y] = viewport.worldToCanvas(world), frame = viewport.canvas.getBoundingClientRect();
    return [frame.left + x, frame.top + y];
}"""

COLOUR = """label => {
    const segments = Object.values(services.segmentationService.getSegmentation('1').segments).filter(Boolean);
    const index = segments.find(one => one.label === label).segmentIndex;
    const id = services.viewportGridService.getState().activeViewportId;
    return Array.from(cornerstoneTools.segmentation.config.color.getSegmentIndexColor(id, '1', index)).slice(0, 3);
}"""

LABELMAP = """() => {
    const volume = services.segmentationService.getLabelmapVolume('1');
    const voxels = Uint8Array.from(volume.voxelManager.getCompleteScalarDataArray());
    let text = '';
    for (let start = 0; start < voxels.length; start += 32768)
        text += String.fromCharCode(...voxels.subarray(start, start + 32768));
    const segments = Object.values(services.segmentationService.getSegmentation('1').segments).filter(Boolean);
    return {
        voxels: btoa(text),
        shape: Array.from(volume.dimensions),
        segments: Object.fromEntries(segments.map(one => [one.label, one.segmentIndex])),
    };
}"""


class OhifPage:
    """One browser window. ``failed`` lists requests to the server that were answered with an error."""

    def __init__(self, page: Page, *, url: str, pictures: Path) -> None:
        self.page, self.url, self._pictures = page, url, pictures
        self.failed: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("response", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step of a walk; a picture of the window is kept whether it works or not."""
        try:
            yield
        finally:
            self._pictures.mkdir(parents=True, exist_ok=True)
            number = len(list(self._pictures.iterdir())) + 1
            self.page.screenshot(path=self._pictures / f"{number:02d} {name}.png")

    def list_studies(self, **filters: str) -> None:
        """Open the list of studies, with filters as its address holds them."""
        query = "&".join(f"{key}={value}" for key, value in filters.items())
        self.page.goto(f"{self.url}/ohif/?{query}")
        self.page.get_by_text("Study List").first.wait_for()

    def shows(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def open_study(self, study_uid: str) -> None:
        """Open a study with the MONAI Label panel, and wait for its images."""
        self.page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study_uid}")
        self.page.locator("#monailabelServerURL").wait_for()
        self.page.wait_for_function(
            """() => { try {
                const id = services.viewportGridService.getState().activeViewportId;
                const viewport = services.cornerstoneViewportService.getCornerstoneViewport(id);
                return viewport.getImageData().imageData.getDimensions()[2] > 1;
            } catch { return false; } }"""
        )
        notice = self.page.get_by_role("button", name="Confirm and Hide")
        if notice.is_visible():
            notice.click()

    def connect(self) -> str:
        """Press the panel's connect button; returns the address of the server it connects to."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/info/")) as info:
            self.page.locator(".settingsTable button").click()
        assert info.value.status == 200
        self.wait_until_connected()
        return info.value.url.removesuffix("/info/")

    def wait_until_connected(self) -> None:
        """The panel connects by itself, once the images are there; then the masks come back."""
        self.page.get_by_text("Point Prompts").wait_for()
        self.page.locator("#ssmsam-bar.ssmsam-ready").wait_for()
        self.page.wait_for_timeout(1000)
        self.idle()

    def prompt_with(self, model: str) -> None:
        """Choose a model under Point Prompts."""
        self._tab("Point Prompts").locator("label.tab-label").click()
        self._tab("Point Prompts").locator("select").select_option(model)

    def propose_with(self, model: str) -> None:
        """Choose a model under Auto-Segmentation."""
        self._tab("Auto-Segmentation").locator("label.tab-label").click()
        self._tab("Auto-Segmentation").locator("select").select_option(model)

    def choose_option(self, model: str, option: str, value: str) -> None:
        """Choose a value of a model's option, as users do under Options / Configurations."""
        self.page.get_by_text("Options / Configurations").first.click()
        self.page.locator("select[name=selectName]").select_option(model)
        self.page.locator(f"select[id='infer{model}{option}']").select_option(value)
        self.page.get_by_role("button", name="Confirm", exact=True).click()
        self.page.locator(".optionsForm").wait_for(state="detached")

    def choose_label(self, name: str) -> None:
        self._tab("Point Prompts").locator("tr.clickable-row").get_by_text(name, exact=True).click()

    def click_voxel(self, ijk: list[int]) -> None:
        """Go to a voxel's slice in the active view and click on the voxel."""
        x, y = self.page.evaluate(PLACE_OF_VOXEL, ijk)
        self.page.wait_for_timeout(500)  # the view is drawn in the next frames
        self.page.mouse.click(x, y)
        self.page.wait_for_timeout(500)

    def run(self, tab: str = "Point Prompts") -> dict[str, Any]:
        """Press Run and wait for the answer; returns the request's parameters."""
        with (
            self.page.expect_response(lambda answer: "/infer/" in answer.url) as answer,
            self.page.expect_request(lambda request: "/infer/" in request.url) as asked,
        ):
            self._tab(tab).get_by_role("button", name="Run").click()
        answer.value.finished()
        self.idle()
        return _parameters(asked.value)

    def press_run(self) -> None:
        """Press Run under Point Prompts where nothing may come of it."""
        self._tab("Point Prompts").get_by_role("button", name="Run").click()
        self.idle()

    def press(self, key: str) -> str:
        """One key of the bar; returns what it says then."""
        self.page.keyboard.press(key)
        return self.idle()

    def idle(self) -> str:
        """Wait until the bar has done everything; what it said last."""
        self.page.wait_for_timeout(300)
        self.page.wait_for_function("() => !document.querySelector('#ssmsam-bar').classList.contains('ssmsam-busy')")
        said = self.page.locator(".ssmsam-notice span")
        return said.first.inner_text() if said.count() else ""

    def slice_states(self) -> list[str]:
        """What the strip says of each slice: annotated, empty, predicted or unknown; and +asked."""
        self.page.wait_for_timeout(600)
        found: list[str] = self.page.evaluate(
            "() => [...document.querySelectorAll('.ssmsam-strip button')].map(one => one.className)"
        )
        return [name.replace("ssmsam-", "").replace(" ", "+") for name in found]

    def slice_on_screen(self) -> int:
        """The stored slice of the axial view."""
        self.page.wait_for_timeout(600)
        return int(self.page.locator(".ssmsam-strip [data-now]").get_attribute("data-slice") or -1)

    def colour(self, label: str) -> list[int]:
        """The colour in which the axial view shows a label, as red, green and blue."""
        found: list[int] = self.page.evaluate(COLOUR, label)
        return found

    def mask(self, label: str) -> np.ndarray:
        """The voxels of a segment as the viewer holds them, (slices, rows, columns)."""
        voxels, segments = self.segmentation()
        return voxels == segments[label]

    def segmentation(self) -> tuple[np.ndarray, dict[str, int]]:
        """All voxels as the viewer holds them, (slices, rows, columns), and the value of each segment."""
        found = self.page.evaluate(LABELMAP)
        voxels = np.frombuffer(base64.b64decode(found["voxels"]), dtype=np.uint8).reshape(found["shape"][::-1])
        return voxels, found["segments"]

    def _note(self, answer: Response) -> None:
        if answer.status >= 400 and answer.url.startswith(self.url):
            self.failed.append(f"{answer.status} {answer.url.removeprefix(self.url)}")

    def _tab(self, name: str) -> Any:
        return self.page.locator("div.tab").filter(has=self.page.locator("label.tab-label", has_text=name)).last


@contextmanager
def ohif(url: str, pictures: Path) -> Iterator[OhifPage]:
    """OHIF as the server at ``url`` serves it. Screenshots go to ``pictures``."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 950}, device_scale_factor=SCALE)
            yield OhifPage(page, url=url, pictures=pictures)
        finally:
            browser.close()


def _parameters(request: Request) -> dict[str, Any]:
    """The form field ``params`` of an inference request."""
    body = (request.post_data_buffer or b"").decode(errors="replace")
    found = re.search(r'name="params"\r\n\r\n(.*?)\r\n--', body, flags=re.DOTALL)
    return json.loads(found.group(1)) if found else {}
