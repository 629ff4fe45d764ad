"""How soon a large CT is on screen, and how smoothly it scrolls, in a Chromium that draws by software."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from serving import Server

pytest.importorskip("playwright", reason="playwright is not installed: pip install -r requirements-dev.txt")

from page_window import HAS_PAGE, opened_browser, opened_window

pytestmark = [pytest.mark.slow, *HAS_PAGE]

COLUMNS, ROWS, SLICES = 512, 512, 300
FIRST_IMAGE_MS, FRAMES_PER_SECOND, MOST_SENT = 3000.0, 12.0, 20_000
"""The goal is 30 frames; 17.5 were measured here, drawn by software on one of two cores: less would be a loss."""

SCROLL = """async seconds => {
    const {stage} = ssmsam, end = performance.now() + 1000 * seconds, pixel = new Uint8Array(4);
    let frames = 0;
    while (performance.now() < end) {
        await new Promise(requestAnimationFrame);
        stage.goTo((stage.slice + 1) % stage.grid.shape[2]);
        stage.nv.gl.readPixels(0, 0, 1, 1, stage.nv.gl.RGBA, stage.nv.gl.UNSIGNED_BYTE, pixel);  // until it is drawn
        frames += 1;
    }
    return frames / seconds;
}"""


def large_ct(path: Path) -> None:
    """A body with a liver and a spine in it, and noise."""
    z, y, x = np.ogrid[-1 : 1 : SLICES * 1j, -1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]  # type: ignore[misc]
    array = np.full((SLICES, ROWS, COLUMNS), -1000, dtype=np.int16)
    array[np.broadcast_to((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, array.shape)] = 30
    array[((x + 0.35) / 0.35) ** 2 + ((y + 0.05) / 0.35) ** 2 + (z / 0.6) ** 2 < 1] = 110
    array[np.broadcast_to((x / 0.1) ** 2 + ((y - 0.35) / 0.12) ** 2 < 1, array.shape)] = 600
    array += np.random.default_rng(0).integers(-20, 20, size=array.shape, dtype=np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.75, 0.75, 1.5))
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def test_a_large_ct_is_soon_on_screen_and_scrolls(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    large_ct(studies / "large.nii.gz")
    running = Server(studies=studies, home=tmp_path / "home", conf={"precompute": "false", "encoder": "small"})
    try:
        running.wait_until_it_answers().wait_until_warm()
        with opened_browser() as browser, opened_window(browser) as window:
            window.open(running.url, "large")
            first, opened = window.page.evaluate("[ssmsam.firstImageMs, ssmsam.openedMs]")
            window.press("1")
            window.click([180, 250, 150])
            click = window.page.evaluate("ssmsam.lastClickMs")
            with window.page.expect_request("**/annotations/slice**") as accepted:
                window.press("a")
            save, sent = window.page.evaluate("ssmsam.lastSaveMs"), len(accepted.value.post_data_buffer or b"")
            frames = window.page.evaluate(SCROLL, 4.0)
        said = (
            f"first image {first:.0f} ms, volume {opened:.0f} ms, click {click:.0f} ms, accept {save:.0f} ms, "
            f"{sent} bytes, {frames:.1f} frames a second"
        )
        print(said)
        assert first < FIRST_IMAGE_MS
        assert sent < MOST_SENT
        assert frames > FRAMES_PER_SECOND
    finally:
        running.kill()
