"""Pictures of the page for README, made by its own walk on the sample data: ``make screenshots``."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
from page_window import Window, opened_browser, opened_window
from PIL import Image
from sample_cases import CT, MR, SAMPLES, Truth, copy_of
from serving import ROOT, Server

MOST_BYTES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images", help="where the pictures go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        studies = Path(scratch) / "studies"
        studies.mkdir()
        for file in sorted((SAMPLES / "abdomen").glob("*.nii.gz")):
            copy_of(file.name.removesuffix(".nii.gz"), studies)
        server = Server(studies=studies, home=Path(scratch) / "home", conf={"precompute": "false", "encoder": "small"})
        try:
            server.wait_until_it_answers().wait_until_warm()
            with opened_browser() as browser, opened_window(browser, "reader-a", scale=1) as window:
                _annotate(server, window, folder)
                for name, path in (("studies", "/"), ("dashboard", "/dashboard")):
                    window.page.goto(server.url + path)
                    window.page.wait_for_timeout(4000)
                    _keep(window, folder / f"page_{name}.webp")
        finally:
            server.kill()


def _annotate(server: Server, window: Window, folder: Path) -> None:
    for image, organs in ((CT, {"1": "liver", "2": "spleen", "4": "left kidney"}), (MR, {"1": "liver"})):
        truth = Truth.of(image)
        window.open(server.url, image)
        for key, label in organs.items():
            window.press(key)
            slices = np.flatnonzero(truth.mask(label).any(axis=(1, 2)))
            for share in (0.35, 0.7):
                window.click(truth.click(label, k=int(slices[round(share * (len(slices) - 1))])))
                window.press("a")
        window.press("f")
        window.page.locator("#estimate .found").first.wait_for()
        window.idle()
        if image == CT:
            window.press("1")
            window.place(truth.click("liver"))
            window.press("ArrowUp", "s")
            k = window.slice
            j, i = np.nonzero(truth.mask("liver")[k])
            rows = np.linspace(j.min() + 10, j.max() - 10, 4).astype(int)
            window.drag(*[[int(np.median(i[j == row])), int(row), k] for row in rows])
            for notice in window.page.locator(".notice button").all():
                notice.click()
            _keep(window, folder / "page_annotate.webp")
            window.press("v", "v")
            _keep(window, folder / "page_3d.webp")


def _keep(window: Window, path: Path) -> None:
    picture = Image.open(io.BytesIO(window.page.screenshot())).convert("RGB")
    picture.save(path, quality=80, method=6)
    assert path.stat().st_size < MOST_BYTES, path


if __name__ == "__main__":
    main()
