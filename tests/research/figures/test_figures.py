import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from ssmsam.cli.annotator import Click
from ssmsam.cli.pictures import MASK, TRUTH, Panel, draw_overlays
from ssmsam_research.figures.curves import draw_curves


def _panel(mask: np.ndarray) -> Panel:
    image = np.full(mask.shape, 0.5)
    return Panel("liver", image, mask, truth=mask, clicks=[Click(20, 15, True), Click(3, 3, False)])


def _coloured(path) -> np.ndarray:
    pixels = matplotlib.image.imread(path)[..., :3]
    return np.ptp(pixels, axis=2) > 0.1


def test_a_mask_is_seen_in_the_picture(tmp_path):
    mask = np.zeros((40, 60), dtype=bool)
    plain = draw_overlays(tmp_path / "plain.png", [Panel("", np.full(mask.shape, 0.5), mask)])
    mask[10:30, 15:45] = True
    drawn = draw_overlays(tmp_path / "new folder" / "drawn.png", [_panel(mask)])
    assert _coloured(plain).sum() == 0
    assert _coloured(drawn).mean() > 0.05
    for colour in (TRUTH, MASK):  # the palette keeps the colours of thin lines
        assert (
            np.abs(matplotlib.image.imread(drawn)[..., :3] - matplotlib.colors.to_rgb(colour)).sum(axis=2).min() < 0.3
        )


def test_curves_are_drawn_for_every_name(tmp_path):
    curves = {"liver": {1: 60.0, 3: 70.0}, "mean": {1: 50.0, 3: 65.0}}
    path = draw_curves(tmp_path / "curves.png", curves, title="Dice by clicks")
    assert matplotlib.image.imread(path).std() > 0.01


def test_of_two_lines_that_lie_on_each_other_both_are_seen(tmp_path):
    def colours(*names):
        line = {1: 60.0, 3: 70.0}
        path = draw_curves(tmp_path / "curves.png", dict.fromkeys(names, line), title="")
        pixels = matplotlib.image.imread(path)[:, :600, :3]  # the axes, without the legend
        return len(np.unique(pixels[np.ptp(pixels, axis=2) > 0.4].round(1), axis=0))

    assert colours("one", "two") > colours("one")


def test_an_interval_is_drawn_around_its_line(tmp_path):
    curves = {"liver": {1: 60.0, 3: 70.0}}
    plain = draw_curves(tmp_path / "plain.png", curves, title="")
    banded = draw_curves(tmp_path / "band.png", curves, title="", bands={"liver": {1: (40.0, 80.0), 3: (60.0, 75.0)}})
    plain, banded = (matplotlib.image.imread(path)[..., :3].min(axis=2) < 0.95 for path in (plain, banded))
    assert banded.sum() > 5 * plain.sum()


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_overlays(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves(tmp_path / "a.png", {}, title="")
