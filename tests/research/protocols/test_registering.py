"""Masks carried by registration are scored on the fixed case's voxels, for every method that is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssmsam.volume.volume import Grid, Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import Case, LabelledSet, open_set
from ssmsam_research.protocols import registration as registering
from ssmsam_research.protocols.registration import RegistrationRun, carried_labels, pairs_of

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


@pytest.fixture
def bodies(tmp_path: Path) -> LabelledSet:
    """One textured body twice, the second bent by some cells, with an organ that both hold and one of the first."""
    z, y, x = np.mgrid[:28, :32, :36]
    inside = ((y - 16) / 13) ** 2 + ((x - 18) / 15) ** 2 < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(inside.shape), 2)
    organ = ((z - 14) / 6) ** 2 + ((y - 15) / 5) ** 2 + ((x - 24) / 5) ** 2 < 1
    image = np.where(inside, 100 + 30 * texture / texture.std(), 0.0)
    image[organ] = 220
    bent = [z + 1.5 * np.sin(x / 7), y + 2 * np.sin(z / 6), x + 2 * np.cos(y / 7)]
    for name, places in (("one", [z, y, x]), ("two", bent)):
        moved = ndimage.map_coordinates(image, places, order=1, mode="nearest")
        labels = ndimage.map_coordinates(organ.astype(np.int16), places, order=0, mode="nearest")
        if name == "one":
            labels[:2, :2, :2] = 2
        write_volume(Volume(moved.astype(np.float32), AFFINE, modality="MR"), tmp_path / "images" / f"{name}.nii.gz")
        write_volume(Volume(labels.astype(np.int16), AFFINE), tmp_path / "labels" / f"{name}.nii.gz")
    return open_set(tmp_path, label_names={1: "organ", 2: "corner"})


def test_pairs_are_spread_over_a_set_and_no_case_meets_itself() -> None:
    cases = [Case(str(n), Path("i"), Path("l")) for n in range(9)]
    found = [(one.name, other.name) for one, other in pairs_of(cases, 3)]
    assert found == [("0", "4"), ("3", "7"), ("6", "1")]
    assert [(one.name, other.name) for one, other in pairs_of(cases[:2], 6)] == [("0", "1"), ("1", "0")]
    with pytest.raises(ValueError, match="two cases"):
        pairs_of(cases[:1], 6)


def test_labels_are_carried_to_other_voxels_by_the_places_of_cells() -> None:
    moving, fixed = Grid((6, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0])), Grid((12, 16, 16), np.eye(4))
    labels = np.zeros(moving.shape, np.int32)
    labels[2, 3, 4] = 7
    cells = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in moving.shape), indexing="ij"))
    carried = carried_labels(labels, moving, moving, cells + torch.tensor([0.0, 1.0, 0.0])[:, None, None, None],
                             moving, fixed)  # fmt: skip
    assert np.argwhere(carried == 7).mean(axis=0) == pytest.approx([4, 4, 8], abs=0.51)


def test_methods_are_scored_on_labels_of_both_cases_missing_ones_named_and_nothing_measured_twice(
    bodies: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "available", lambda name: "not installed" if name == "elastix" else "")
    run = RegistrationRun((bodies,), ("ours", "our start", "elastix"))
    log = tmp_path / "log"
    result = run.run(log)
    assert result["left_out"] == {"elastix": "not installed"}
    sets = {name: found["sets"][bodies.name] for name, found in result["methods"].items()}
    assert set(sets["ours"]["per_label"]) == {"organ"} and sets["ours"]["dice"]["n"] == 2
    assert sets["ours"]["dice"]["mean"] > max(85, sets["our start"]["dice"]["mean"] + 5)
    assert sets["ours"]["seconds"] > sets["our start"]["seconds"] > 0
    monkeypatch.setattr(registering, "_timed", lambda *given: pytest.fail("measured again"))
    assert run.run(log)["methods"] == result["methods"]
