"""Scores against what was annotated, and where nothing was."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from pocket_service import AFFINE, annotate, embed, truth
from service_over_folder import make_service

from ssmsam.server.tasks.scoring import DiceScore, UncertaintyScore
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.service.volume_forecasts import VolumeForecasts
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


@pytest.fixture
def service(tmp_path: Path) -> FewShotService:
    return make_service(tmp_path)


def save_original(service: FewShotService, image: str, array: np.ndarray, folder: Path) -> None:
    """A model's mask, long enough ago."""
    file = folder / "original.nii.gz"
    write_volume(Volume(array, AFFINE), file)
    info = {"model": "fewshot", "params": {"label_names": {"liver": 1, "spleen": 2}}}
    service.studies.save_label(image, str(file), "original", info)
    service.studies.update_label_info(image, "original", {"ts": int(time.time()) - 60})


def half_right() -> np.ndarray:
    """The liver lacks half of its rows on slice 3, is right on 4, is nonsense elsewhere; the spleen is right."""
    array = truth()
    array[3, 18:28][array[3, 18:28] == 1] = 0
    for index in (2, 5, 6, 7):
        array[index][array[index] == 1] = 0
    return array


def test_only_annotated_slices_count_label_by_label(service: FewShotService, tmp_path: Path) -> None:
    save_original(service, "a", half_right(), tmp_path)
    annotate(service, "a", {"liver": [3, 4], "spleen": [5]}, tmp_path)
    score = DiceScore()({}, service.studies)
    half, whole = 160, 320
    expected = 2 * (half + whole) / (half + whole + 2 * whole)
    assert set(score) == {"a"}
    assert score["a"]["dice_per_label"]["liver"] == {"dice": pytest.approx(expected, abs=1e-4), "slices": 2}
    assert score["a"]["dice_per_label"]["spleen"] == {"dice": 1.0, "slices": 1}
    assert score["a"]["dice"] == pytest.approx((expected + 1) / 2, abs=1e-4)
    assert service.studies.get_image_info("a")["dice"] == score["a"]["dice"]


def test_a_slice_known_to_be_empty_counts(service: FewShotService, tmp_path: Path) -> None:
    flooded = truth()
    flooded[9, 8:28, 6:22] = 1
    save_original(service, "a", flooded, tmp_path)
    annotate(service, "a", {"liver": [4, 9]}, tmp_path)
    assert DiceScore()({}, service.studies)["a"]["dice"] == pytest.approx(2 * 320 / (3 * 320), abs=1e-4)


def test_a_mask_is_not_praised_for_what_it_was_told(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [3, 4]}, tmp_path)
    save_original(service, "a", truth(), tmp_path)
    service.studies.update_label_info("a", "original", {"ts": int(time.time()) + 60})
    assert DiceScore()({}, service.studies) == {}


def test_masks_of_another_tag_or_without_a_time(service: FewShotService, tmp_path: Path) -> None:
    save_original(service, "a", truth(), tmp_path)
    annotate(service, "a", {"liver": [4]}, tmp_path)
    assert DiceScore()({}, service.studies)["a"]["dice"] == 1.0
    assert DiceScore()({"y_pred": "version_1"}, service.studies) == {}
    service.studies.update_label_info("a", "original", {"ts": None})
    assert DiceScore()({}, service.studies) == {}


def test_uncertainty_is_kept_with_the_image(service: FewShotService, tmp_path: Path) -> None:
    score = UncertaintyScore(VolumeForecasts(service))
    assert score({}, service.studies) == {}
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    embed(service, "a", "b")
    found = score({}, service.studies)
    assert set(found) == {"a", "b"}
    for image, one in found.items():
        assert 0 < one["uncertainty"] <= 1 and set(one["uncertainty_per_label"]) == {"liver"}
        assert service.studies.get_image_info(image)["uncertainty"] == one["uncertainty"]
    with pytest.raises(InvalidRequest, match="budget_s"):
        score({"budget_s": "long"}, service.studies)
