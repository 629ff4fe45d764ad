"""Windows of the server's page in one headless Chromium, worked by mouse and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from ohif_page import ARGUMENTS, CHROMIUM, SCALE
from playwright.sync_api import Browser, Page, sync_playwright
from sample_cases import Truth

from ssmsam.server.routes.pages import NIIVUE

HAS_PAGE = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not NIIVUE.is_file(), reason="NiiVue is not there: make setup"),
]
SCREEN = """k => Array.from(ssmsam.study.read(k))"""
VALUE = """name => ssmsam.study.labels.find(one => one.name === name).value"""


class Window:
    """A window of one reader. ``errors`` are those of its scripts and of its security policy."""

    def __init__(self, page: Page, reader: str) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: "Content Security" in said.text and self.errors.append(said.text))
        page.add_init_script(
            f"localStorage.getItem('ssmsam-client') ?? localStorage.setItem('ssmsam-client', '{reader}')"
        )
        page.set_default_timeout(120_000)

    def open(self, url: str, image: str) -> None:
        self.page.goto(f"{url}/annotate?image={image}")
        self.ready()

    def ready(self) -> None:
        self.page.locator("body[data-ready]").wait_for()

    def idle(self) -> str:
        """Wait until everything is done; what it says of saving."""
        self.page.locator("body:not([data-busy])").wait_for()
        return self.page.locator("#saved").inner_text()

    def press(self, *keys: str) -> str:
        for key in keys:
            self.page.keyboard.press(key)
        return self.idle()

    def adapt(self) -> None:
        """Until what it proposes is adapted."""
        self.press("f")
        self.page.locator("#job").wait_for(state="hidden", timeout=400_000)
        self.idle()

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

    def drag(self, *voxels: list[int]) -> str:
        first, *others = [self.place(ijk) for ijk in voxels]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for place in others:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()
        return self.idle()

    @property
    def slice(self) -> int:
        return int(self.page.evaluate("ssmsam.stage.slice"))

    def mask(self, label: str, k: int, truth: Truth) -> np.ndarray:
        """What is on the screen of a label on a stored slice, (rows, columns)."""
        voxels = np.array(self.page.evaluate(SCREEN, k)).reshape(truth.array.shape[1:])
        return voxels == self.page.evaluate(VALUE, label)

    def strip(self, k: int) -> str:
        return self.page.locator("#strip i").nth(k).get_attribute("class") or ""


@contextmanager
def opened_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened_window(browser: Browser, reader: str = "page-reader", *, scale: float = SCALE) -> Iterator[Window]:
    """With storage of its own and ``scale`` pixels of the screen to one of the page; ends with a look at its errors."""
    size = {"width": 1280, "height": 720}
    context = browser.new_context(viewport=size, device_scale_factor=scale, accept_downloads=True)
    try:
        window = Window(context.new_page(), reader)
        try:
            yield window
        except Exception:  # a wait that was in vain does not say what the page said instead
            print("the page says:", window.page.locator("#saved, #notices, #review").all_inner_texts())
            raise
        assert not window.errors, window.errors
    finally:
        context.close()
