"""The small model as it comes with the package, on the sample dataset: prompts are kept and masks are sensible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.session import SegmentationState, segment_2d, segment_3d
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.models.registry import load_decoder, load_encoder
from ssmsam.models.weights import MissingWeights
from ssmsam.reading import read_volume
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.volume import Volume

SAMPLES = Path(__file__).parents[2] / "sample-datasets"
LIVER = 1


@pytest.fixture(scope="module")
def model() -> tuple[Embedder, PromptDecoder]:
    try:
        return Embedder(encoder=load_encoder("small")), load_decoder("small")
    except MissingWeights:
        pytest.skip("the small model's weights are not in this checkout")


@pytest.fixture(scope="module", params=["ct_01", "mr_04"])
def case(request: pytest.FixtureRequest) -> tuple[Volume, np.ndarray, int]:
    """Five slices round the largest slice of the liver, its mask there, and that slice's number."""
    image = SAMPLES / "abdomen" / f"{request.param}.nii.gz"
    if not image.exists():
        pytest.skip("the sample dataset is not in this checkout")
    volume = read_volume(image)
    truth = read_volume(SAMPLES / "abdomen_labels" / image.name).array == LIVER
    k = int(truth.sum(axis=(1, 2)).argmax())
    return Volume(volume.array[k - 2 : k + 3], volume.affine, volume.modality), truth[k - 2 : k + 3], 2


def box_round(mask: np.ndarray, k: int) -> list[int]:
    y, x = np.nonzero(mask)
    return [int(x.max()), int(x.min()), int(y.min()), int(y.max()), k - 1, k + 1]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_box_finds_the_organ_and_spreads_both_ways(model: tuple, case: tuple) -> None:
    (embedder, decoder), (volume, truth, k) = model, case
    embeddings, state = embedder.open(volume), SegmentationState()
    params = {"roi": box_round(truth[k], k), "label": "liver"}
    flat = segment_2d(read_prompts(params, grid=volume.grid, dimension=2), embeddings, decoder, state)
    assert dice(flat.mask[k] > 0, truth[k]) > 0.5
    whole = segment_3d(read_prompts(params, grid=volume.grid, dimension=3), embeddings, decoder, state)
    assert whole.mask[k - 1].any()
    assert whole.mask[k + 1].any()
    assert not whole.mask[[k - 2, k + 2]].any()
    assert np.array_equal(whole.mask[k], flat.mask[k])


def test_corrections_act_and_encode_nothing_again(model: tuple, case: tuple) -> None:
    (embedder, decoder), (volume, truth, k) = model, case
    embeddings, state = embedder.open(volume), SegmentationState()
    params = {"roi": box_round(truth[k], k), "label": "liver"}
    first = segment_3d(read_prompts(params, grid=volume.grid, dimension=3), embeddings, decoder, state)
    encoded = embedder.encoded
    wrong = [
        [int(x), int(y), index]
        for index in (k - 1, k, k + 1)
        for y, x in np.argwhere((first.mask[index] > 0) & ~truth[index])[:1]
    ]
    missed = [
        [int(x), int(y), index]
        for index in (k - 1, k, k + 1)
        for y, x in np.argwhere((first.mask[index] == 0) & truth[index])[:1]
    ]
    assert wrong
    assert missed
    params |= {"foreground": missed, "background": wrong}
    second = segment_3d(read_prompts(params, grid=volume.grid, dimension=3), embeddings, decoder, state)
    assert all(second.mask[index, y, x] == 0 for x, y, index in wrong)
    assert all(second.mask[index, y, x] == 1 for x, y, index in missed)
    assert embedder.encoded == encoded
