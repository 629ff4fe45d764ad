"""Our clicks beside those of other packages."""

import json

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from ssmsam.cli.annotator import Click
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import open_set
from ssmsam_research.protocols.speed import SpeedProtocol, Timing
from ssmsam_research.protocols.speed_against import RIVALS, PredictorModel, against_table, compare_clicks, open_rival

CLICKS = [Click(20, 12, True), Click(3, 3, False)]


@pytest.fixture(scope="module")
def volume():
    image = np.random.default_rng(0).normal(0, 50, size=(6, 48, 64)).astype(np.float32)
    return Volume(image, np.diag([1.0, 1.0, 3.0, 1.0]), modality="CT")


def test_a_predictor_of_the_package_answers_on_the_slice_that_was_opened(volume):
    torch.manual_seed(0)
    encoder = ImageEncoderViT(img_size=64, embed_dim=16, depth=1, num_heads=2, out_chans=16, global_attn_indexes=(0,))
    masks = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(1, 16, 2, 16))
    predictor = SamPredictor(Sam(encoder, PromptEncoder(16, (4, 4), (64, 64), 4), masks).eval())
    model = PredictorModel(predictor, volume)
    opened = model.open_and_click(2, CLICKS)
    assert opened.shape == (48, 64) and opened.dtype == bool
    np.testing.assert_array_equal(model.click(CLICKS), opened)
    before = predictor.features.clone()
    model.open_and_click(3, CLICKS)
    assert not torch.equal(predictor.features, before)


@pytest.mark.slow
def test_contestants_take_turns_and_ratios_are_over_our_later_click(volume, random_small, tmp_path):
    for kind, array in (("images", volume.array), ("labels", (volume.array > 0).astype(np.uint8))):
        (tmp_path / kind).mkdir()
        write_volume(Volume(array, volume.affine), tmp_path / kind / "a.nii.gz")
    turns = []
    found = compare_clicks(
        {"ours": random_small, "ours again": random_small},
        open_set(tmp_path).cases[0],
        SpeedProtocol(rounds=2, warm_up=1, threads=1),
        device="cpu",
        progress=lambda phase, done, total: turns.append(phase.rsplit(" ", 1)[-1]),
    )
    assert turns == ["ours", "again"] * 3
    json.dumps(found)
    ours = found["ours"]
    assert ours["over_our_later_click"]["later_click"] == {"wall": 1.0, "processor": 1.0}
    assert ours["seconds"]["opening_click"]["n"] == 2
    # the slice is encoded in the one and not in the other
    assert found["ours again"]["over_our_later_click"]["opening_click"]["processor"] > 1
    assert ours["peak_memory_mb"] > 100


def test_the_table_has_a_row_for_each_contestant():
    seconds = {step: Timing([n], [n]).as_json() for step, n in (("opening_click", 4.0), ("later_click", 0.5))}
    ratios = {"opening_click": {"processor": 8.0}, "later_click": {"processor": 1.0}}
    clicks = {"ours, small": {"seconds": seconds, "over_our_later_click": ratios, "peak_memory_mb": 900}}
    unet = {"processor_seconds": 20.0, "dice": {"other slices": 71.0}, "over_fewshot": {"processor_seconds": 1.5}}
    table = against_table(clicks, {"unet": {**unet, "peak_memory_mb": 1200}})
    assert "8.0 / 1.0" in table and "1.50" in table and "71.0" in table


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_the_networks_that_users_would_take_answer(name, volume):
    model = open_rival(name, volume, "cpu")
    with torch.inference_mode():
        assert model.open_and_click(2, CLICKS).shape == (48, 64)
        assert model.click(CLICKS).shape == (48, 64)
