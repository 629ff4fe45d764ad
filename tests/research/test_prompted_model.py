import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssmsam.cli.annotator import Click, click_params
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.model_choice import PromptedModel, PromptedTarget
from ssmsam_research.protocols.clicks import ClickProtocol, run_case


@pytest.fixture(scope="module")
def model(random_small):
    return PromptedModel.load(random_small)


@pytest.fixture(scope="module")
def embeddings(model):
    image = np.random.default_rng(0).normal(100, 30, size=(5, 40, 64)).astype(np.float32)
    return model.embedder.open(Volume(image, np.diag([1.0, 1.0, 3.0, 1.0]), modality="MR"))


def test_clicks_become_voxel_indices_column_row_slice():
    params = click_params(4, [Click(x=30, y=7, positive=True), Click(x=2, y=1, positive=False)], (1, 2, 3, 4))
    assert params == {"foreground": [[30, 7, 4]], "background": [[2, 1, 4]], "roi": [1, 2, 3, 4], "slice": 4}


def test_the_mask_of_a_slice_keeps_to_the_clicks(model, embeddings):
    target = PromptedTarget(embeddings, model.decoder)
    clicks = [Click(50, 10, True)]
    mask = target.slice_mask(2, clicks, None)
    assert mask.shape == (40, 64)
    assert mask[10, 50]
    clicks.append(Click(5, 30, False))
    assert not target.slice_mask(2, clicks, None)[30, 5]


def test_later_clicks_on_a_slice_need_no_encoder(model, embeddings):
    target = PromptedTarget(embeddings, model.decoder)
    target.slice_mask(3, [Click(50, 10, True)], None)
    before = model.embedder.encoded
    target.slice_mask(3, [Click(50, 10, True), Click(5, 30, False)], None)
    PromptedTarget(embeddings, model.decoder).slice_mask(3, [Click(20, 20, True)], None)
    assert model.embedder.encoded == before


def test_the_mask_of_a_volume_holds_the_clicked_slice(model, embeddings):
    mask = PromptedTarget(embeddings, model.decoder).volume_mask(2, [Click(50, 10, True), Click(5, 30, False)], None)
    assert mask.shape == (5, 40, 64)
    assert mask[2, 10, 50]
    assert not mask[2, 30, 5]


def test_a_box_keeps_the_mask_near_it_or_finds_nothing(model, embeddings):
    mask = PromptedTarget(embeddings, model.decoder).slice_mask(1, [], (20, 10, 40, 25))
    mask[8:28, 18:43] = False  # the box with its margin
    assert not mask.any()


SHAPES = ((1, 20, 24), (2, 300, 40), (2, 1, 9))


@pytest.fixture(scope="module")
def opened(model):
    """Embedded volumes: a single slice, one that is shrunk for the encoder, one whose slices are a row of pixels."""
    rng = np.random.default_rng(0)
    volumes = [Volume(rng.normal(100, 30, shape).astype(np.float32), np.eye(4), modality="MR") for shape in SHAPES]
    return [(volume, model.embedder.open(volume)) for volume in volumes]


@st.composite
def tiny_or_scattered(draw):
    """(number of a shape, mask): a pixel, a thread of one pixel through slices or along one, or pixels all over."""
    number = draw(st.integers(0, len(SHAPES) - 1))
    shape = SHAPES[number]
    place = [draw(st.integers(0, size - 1)) for size in shape]
    mask = np.zeros(shape, dtype=bool)
    kind = draw(st.sampled_from(["pixel", "thread", "row", "column", "scattered"]))
    if kind == "scattered":
        mask = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < draw(st.sampled_from([0.002, 0.05, 0.5]))
    else:
        axis = {"thread": 0, "row": 2, "column": 1}.get(kind)
        mask[tuple(slice(None) if a == axis else at for a, at in enumerate(place))] = True
    assume(mask.any())
    return number, mask


@settings(max_examples=8)
@given(tiny_or_scattered())
def test_no_target_is_too_small_or_of_too_many_parts_to_be_measured(model, opened, drawn):
    number, truth = drawn
    volume, embeddings = opened[number]
    protocol = ClickProtocol(slice_clicks=(1, 2), volume_clicks=(2,), slice_fractions=(0.5,))
    records = run_case(
        volume,
        truth.astype(int),
        LabelledSet("set", (), {}),
        lambda: PromptedTarget(embeddings, model.decoder),
        protocol,
    )
    assert [record["task"] for record in records] == ["slice", "volume"]
    assert all(0 <= score <= 100 for record in records for score in record["dice"].values())
