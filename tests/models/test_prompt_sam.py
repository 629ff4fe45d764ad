"""SAM's prompt encoder and mask decoder behind our interface, with random weights: same answers as the library's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench import draw_volume
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from tiny_sam import tiny_sam

from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.session import SegmentationState, segment_2d, segment_3d
from ssmsam.models.encoder import Embedding
from ssmsam.models.frame import Frame, draw_mask
from ssmsam.models.prompt_decoder import Neighbour, SlicePrompt
from ssmsam.models.prompt_sam import SamPromptDecoder, interior_points, stability
from ssmsam.models.sam_encoder import SamEncoder
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.intensity import MrPercentiles


@pytest.fixture(scope="module")
def sam() -> Sam:
    return tiny_sam(1024)


@pytest.fixture(scope="module")
def decoder(sam: Sam) -> SamPromptDecoder:
    return SamPromptDecoder.from_sam(sam)


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    return {"image": torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1)), "levels": []}


FRAME = Frame(height=300, width=400, size=1024)
POSITIVE = np.array([[120.0, 80.0]])
NEGATIVE = np.array([[310.0, 220.0], [5.0, 299.0]])
BOX = (40.0, 30.0, 250.0, 200.0)


def by_the_library(sam: Sam, embedding: Embedding, prompt: SlicePrompt, previous: torch.Tensor | None, multi: bool):
    """The same question to the library's own predictor."""
    predictor = SamPredictor(sam)
    predictor.features, predictor.is_image_set = embedding["image"], True
    predictor.input_size, predictor.original_size = FRAME.resized, (FRAME.height, FRAME.width)
    points = np.concatenate([prompt.positive, prompt.negative])
    labels = torch.tensor([[1] * len(prompt.positive) + [0] * len(prompt.negative)], dtype=torch.int)
    coordinates = torch.from_numpy(FRAME.points_to_input(points)).float()[None]
    box = None
    if prompt.box is not None:
        box = torch.from_numpy(FRAME.points_to_input(np.reshape(prompt.box, (2, 2)))).float().reshape(1, 4)
    _, quality, logits = predictor.predict_torch(
        coordinates if len(points) else None, labels if len(points) else None, box, previous, multi, return_logits=True
    )
    return logits[0], quality[0]


@pytest.mark.parametrize(
    ("prompt", "with_previous", "candidates"),
    [
        (SlicePrompt(positive=POSITIVE), False, 3),
        (SlicePrompt(positive=POSITIVE), True, 1),
        (SlicePrompt(positive=POSITIVE, negative=NEGATIVE), False, 1),
        (SlicePrompt(positive=POSITIVE, negative=NEGATIVE), True, 1),
        (SlicePrompt(box=BOX), False, 1),
        (SlicePrompt(box=BOX, positive=POSITIVE, negative=NEGATIVE), True, 1),
        (SlicePrompt(negative=NEGATIVE), True, 1),
    ],
)
def test_it_answers_as_the_library_does(
    sam: Sam,
    decoder: SamPromptDecoder,
    embedding: Embedding,
    prompt: SlicePrompt,
    with_previous: bool,
    candidates: int,
) -> None:
    previous = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(2)) if with_previous else None
    ours = decoder.predict(embedding, frame=FRAME, prompt=prompt, previous=previous)
    logits, quality = by_the_library(sam, embedding, prompt, previous, multi=candidates == 3)
    order = quality.argsort(descending=True)
    assert ours.logits.shape == (candidates, 256, 256)
    assert torch.allclose(ours.logits, logits[order], atol=1e-5)
    assert torch.allclose(ours.quality, quality[order].clamp(0, 1), atol=1e-5)
    assert 0 <= ours.presence <= 1


def test_a_neighbours_mask_becomes_mask_box_and_points(
    sam: Sam, decoder: SamPromptDecoder, embedding: Embedding
) -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:180, 60:220] = True
    drawn = draw_mask(mask, FRAME, 256)
    ours = decoder.predict(embedding, frame=FRAME, neighbour=Neighbour(embedding, drawn, 5.0))
    y, x = np.nonzero(drawn[0, 0].numpy() > 0.5)
    box = (np.array([[x.min(), y.min()], [x.max(), y.max()]]) + 0.5) * 4 - 0.5
    assert np.allclose(box, FRAME.points_to_input(np.array([[60, 100], [219, 179]])), atol=3)
    points = (interior_points(drawn[0, 0].numpy() > 0.5, 3) + 0.5) * 4 - 0.5
    sparse, dense = sam.prompt_encoder(
        points=(torch.from_numpy(points).float()[None], torch.ones(1, 3, dtype=torch.int)),
        boxes=torch.from_numpy(box).float().reshape(1, 4),
        masks=(drawn * 2 - 1) * 8,
    )
    with torch.no_grad():
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding["image"],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    assert torch.allclose(ours.logits, logits[0], atol=1e-5)


def test_clicks_beside_a_neighbour_replace_its_points_but_not_its_box(
    decoder: SamPromptDecoder, embedding: Embedding
) -> None:
    drawn = torch.zeros(1, 1, 256, 256)
    drawn[:, :, 20:80, 30:90] = 1
    neighbour = Neighbour(embedding, drawn, 5.0)
    points, labels = decoder._points(SlicePrompt(positive=POSITIVE), FRAME, neighbour)
    assert labels.tolist() == [1]
    assert np.allclose(points.numpy(), FRAME.points_to_input(POSITIVE), atol=1e-3)
    assert decoder._box(SlicePrompt(positive=POSITIVE), FRAME, neighbour) is not None


def test_a_carried_box_is_wider_and_comes_without_points(sam: Sam, embedding: Embedding) -> None:
    decoder = SamPromptDecoder.from_sam(sam, propagates_box=True)
    drawn = torch.zeros(1, 1, 256, 256)
    drawn[..., 100:141, 60:121] = 1
    neighbour = Neighbour(embedding, drawn, 5.0)
    assert not len(decoder._points(SlicePrompt(), FRAME, neighbour)[0])
    wide, exact = (one._box(SlicePrompt(), FRAME, neighbour) for one in (decoder, SamPromptDecoder.from_sam(sam)))
    assert (wide - exact).tolist() == [-3, -3, 3, 3]


def test_a_neighbour_of_a_single_pixel_is_carried_on(sam: Sam, embedding: Embedding) -> None:
    """A pixel fills no cell of the low-resolution grid by half: the box is then round the cells that it fills most."""
    pixel = np.zeros((300, 400), dtype=bool)
    pixel[150, 200] = True
    neighbour = Neighbour(embedding, draw_mask(pixel, FRAME, 256), 3.0)
    assert neighbour.mask.max() < 0.6
    small = Neighbour(embedding, neighbour.mask / 4, 3.0)
    for one in (neighbour, small):
        assert SamPromptDecoder.from_sam(sam, propagates_box=True).predict(embedding, frame=FRAME, neighbour=one)
    x0, y0, x1, y1 = SamPromptDecoder.from_sam(sam)._box(SlicePrompt(), FRAME, small)
    at = FRAME.points_to_input(np.array([[200, 150]]))[0]
    assert x0 - 4 <= at[0] <= x1 + 4 and y0 - 4 <= at[1] <= y1 + 4 and x1 - x0 <= 8


def test_without_any_prompt_it_refuses(decoder: SamPromptDecoder, embedding: Embedding) -> None:
    for prompt in (None, SlicePrompt(), SlicePrompt(negative=NEGATIVE)):
        with pytest.raises(ValueError, match="nothing says"):
            decoder.predict(embedding, frame=FRAME, prompt=prompt)
    with pytest.raises(ValueError, match="mask is empty"):
        decoder.predict(embedding, frame=FRAME, neighbour=Neighbour(embedding, torch.zeros(1, 1, 256, 256), 5.0))


def test_interior_points_are_deep_inside_and_apart() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:31, 5:26] = mask[5:36, 35:56] = True
    points = interior_points(mask, 3)
    assert points[0].tolist() == [45, 15] or abs(points[0][0] - 45) <= 1
    assert all(mask[int(y), int(x)] for x, y in points)
    assert min(np.hypot(*(a - b)) for n, a in enumerate(points) for b in points[:n]) > 8
    assert interior_points(np.zeros((4, 4), bool), 3).shape == (0, 2)
    assert interior_points(np.ones((1, 1), bool), 3).tolist() == [[0, 0]]


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = torch.full((10, 10), -5.0)
    logits[:4] = 5.0
    assert stability(logits) == 1.0
    logits[4:8] = 0.0
    assert stability(logits) == 0.5
    assert stability(torch.full((4, 4), -5.0)) == 0.0


def test_it_runs_through_slices_and_volumes() -> None:
    """Plumbing only: with random weights the masks mean nothing, but prompts are kept all the same."""
    torch.manual_seed(0)
    sam = tiny_sam(128)
    embedder = Embedder(encoder=SamEncoder(sam, name="sam_vit_b", weights_sha256="1" * 64))
    volume = draw_volume()
    embeddings = embedder.open(volume, recipe=MrPercentiles())
    decoder = SamPromptDecoder.from_sam(sam)
    assert decoder.logits_size == 32
    params = {"foreground": [[20, 30, 9], [22, 30, 9]], "background": [[50, 34, 9]]}
    for dimension, segment in ((2, segment_2d), (3, segment_3d)):
        request = read_prompts(params, grid=volume.grid, dimension=dimension)
        result = segment(request, embeddings, decoder, SegmentationState())
        assert result.mask.shape == volume.shape
        assert result.mask[9, 30, 20] == result.mask[9, 30, 22] == 1
        assert result.mask[9, 34, 50] == 0


def test_the_image_encoder_is_not_kept(sam: Sam) -> None:
    assert not hasattr(SamPromptDecoder.from_sam(sam), "sam")
