"""bfloat16 against float32: a check that can fail, on a sample in seconds and on patients in minutes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssmsam.models import encoder as precision
from ssmsam.models.encoder import has_bfloat16, use_bfloat16
from ssmsam.models.sam_encoder import LiteMedSamEncoder
from ssmsam.models.small_encoder import SPEC
from ssmsam.models.weights import MissingWeights, find_weights
from ssmsam_research.labelled_sets import open_set, read_notes
from ssmsam_research.model_choice import ModelChoice
from ssmsam_research.protocols import click_comparison as precision_check
from ssmsam_research.protocols.click_comparison import BOXES, check_precision

ROOT = Path(__file__).resolve().parents[3]
LITE = ModelChoice("medsam_lite")
ONE_SLICE = replace(BOXES, slice_fractions=(0.5,))

instructions = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no instructions for bfloat16")


@pytest.fixture
def installed() -> None:
    try:
        find_weights("medsam_lite")
    except MissingWeights as error:
        pytest.skip(str(error))


@instructions
def test_masks_of_a_sample_stay_the_same(installed: None) -> None:
    """Organs that are more than a few pixels large: in a drawn image a box's border is all that can differ."""
    names = read_notes(ROOT / "benchmarks" / "labels.json", "abdomen").label_names
    sample = open_set(
        ROOT / "sample-datasets" / "abdomen", label_names=names, only=["ct_01"], organs=["liver", "spleen", "aorta"]
    )
    found = check_precision([sample], LITE, protocol=ONE_SLICE)
    assert found["mean_dice"] > 80, "a box that finds nothing in either precision would say nothing"
    assert found["passes"], f"bfloat16 costs {found['loss']} Dice"


@instructions
def test_it_fails_when_half_the_precision_costs_too_much(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LiteMedSamEncoder.encode

    def coarse(self: LiteMedSamEncoder, slices: torch.Tensor, **options: object) -> dict:
        embedding = whole(self, slices, **options)
        if torch.is_autocast_enabled("cpu"):  # as though bfloat16 left next to nothing of it
            embedding["image"] = torch.zeros_like(embedding["image"])
        return embedding

    monkeypatch.setattr(LiteMedSamEncoder, "encode", coarse)
    sample = open_set(ROOT / "sample-datasets" / "abdomen", label_names={1: "liver"}, only=["ct_01"], organs=["liver"])
    assert not check_precision([sample], LITE, protocol=ONE_SLICE)["passes"]


@pytest.mark.slow
@instructions
def test_masks_of_patients_stay_the_same(installed: None) -> None:
    if "SSMSAM_DATA" not in os.environ:
        pytest.skip("set SSMSAM_DATA to a folder with sabs_ct and chaos_t2_mr")
    sets = []
    for name in ("sabs_ct", "chaos_t2_mr"):
        notes = read_notes(ROOT / "benchmarks" / "labels.json", name)
        folder = Path(os.environ["SSMSAM_DATA"]) / name
        sets.append(open_set(folder, label_names=notes.label_names, only=notes.validation[:2]))
    found = check_precision(sets, LITE)
    assert found["passes"], f"bfloat16 costs {found['loss']} Dice"


def test_a_processor_without_instructions_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_check, "has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="no instructions"):
        check_precision([], LITE)


@pytest.mark.parametrize(
    ("checked", "able", "chosen"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_it_is_chosen_by_itself_where_it_was_checked_and_is_faster(
    checked: bool, able: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: able)
    assert use_bfloat16(replace(SPEC, bfloat16=checked), torch.device("cpu")) == chosen
    assert not use_bfloat16(replace(SPEC, bfloat16=True), torch.device("cuda"))
