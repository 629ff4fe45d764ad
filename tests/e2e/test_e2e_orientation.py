"""The same click finds the same anatomy, however the volume is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_cases import CT, SAME_ANATOMY_DICE, Truth, dice, resampled
from serving import Server
from viewers import slicer

from ssmsam.reading import read_grid

STORED = ("ct_01_RAS", "ct_01_LAS", "ct_01_LPI")


@pytest.mark.parametrize("organ", ["liver", "spleen"])
@pytest.mark.parametrize("model", ["sam_2d", "sam_3d"])
def test_in_four_storage_orders(server: Server, studies: Path, ct: Truth, organ: str, model: str) -> None:
    click = ct.click(organ)
    place = ct.grid.to_lps(np.array([click]))
    reference = slicer(server.url, model, CT, label=organ, foreground=[click], slice=click[2]).mask > 0
    for name in STORED:
        grid = read_grid(studies / f"{name}.nii.gz")
        ijk = np.rint(grid.to_ijk(place))[0].astype(int).tolist()
        assert ijk != click
        answer = slicer(server.url, model, name, label=organ, foreground=[ijk], slice=ijk[2])
        back = resampled(answer.mask > 0, grid, ct.grid)
        assert back.sum() == (answer.mask > 0).sum()  # the grids hold the same voxels
        assert dice(back, reference) > SAME_ANATOMY_DICE, name


@pytest.mark.parametrize("model", ["sam_2d", "sam_3d"])
def test_as_a_dicom_series(server: Server, studies: Path, ct: Truth, model: str) -> None:
    click = ct.click("spleen")
    grid = read_grid(studies / "ct_series")
    ijk = np.rint(grid.to_ijk(ct.grid.to_lps(np.array([click]))))[0].astype(int).tolist()
    stored = slicer(server.url, model, CT, label="spleen", foreground=[click], slice=click[2], client_id="file")
    series = slicer(server.url, model, "ct_series", label="spleen", foreground=[ijk], slice=ijk[2], client_id="series")
    back = resampled(series.mask > 0, grid, ct.grid)
    assert dice(back, stored.mask > 0) > 0.999
